"""Whose annotations count for a pod that is being attached."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from podwire.agent.podwatch import PodObject, PodWatch
from podwire.cluster.kube import ClientConfig, KubeClient
from podwire.errors import ApiUnavailableError
from podwire.ipam.record import PodIdentity


async def test_those_of_a_pod_of_that_name_that_was_there_before_are_not_this_ones(
    tmp_path: Path,
) -> None:
    """As of a StatefulSet, whose pods keep their names: then the API has to be asked."""
    metadata = {"namespace": "default", "name": "a", "uid": "u1", "annotations": {"b": "c"}}
    known = {"metadata": metadata, "spec": {"nodeName": "node1"}}
    async with KubeClient(ClientConfig(server=f"unix://{tmp_path}/nobody")) as client:
        pods = PodWatch(client, "node1", everywhere=False, on_change=lambda: None)
        pods._on_sync([msgspec.convert(known, PodObject)])
        # Not all runtimes tell a pod's uid.
        for uid in ("u1", ""):
            assert await pods.annotations(PodIdentity("default", "a", uid)) == {"b": "c"}
        assert await pods.annotations(PodIdentity("", "a")) == {}
        for other in (PodIdentity("default", "a", "u2"), PodIdentity("default", "new")):
            with pytest.raises(ApiUnavailableError):
                await pods.annotations(other)
