"""A lab from Python: `with Lab(nodes=3) as lab:`.

What lives here: the synchronous handle of a lab, for tests and scripts; nodes and pods are
`places`. What does not: anything that the command line cannot do too.

Objects go through the lab's API, as with any client; programs in a node or pod are started
directly in its namespaces, which costs milliseconds. The API client runs on an event loop of its
own thread, so that the handles work inside an asyncio program as well.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from podwire.cluster.kube import (
    NODES,
    PODS,
    ClientConfig,
    KubeClient,
    Resource,
    WatchEvent,
)
from podwire.cluster.kube.resources import find_by_kind
from podwire.errors import InputError, LabError, NotFoundError
from podwire.lab import disruption, lifecycle, rollout
from podwire.lab.control import Control, ProcessStatus
from podwire.lab.faults import Protocol
from podwire.lab.places import DEFAULT_TIMEOUT_S, Json, LabNode, LabPod
from podwire.lab.readiness import NotReadyError, Silent, existing, wait_ready
from podwire.lab.registry import LabInfo
from podwire.lab.shape import Choice, shape
from podwire.lab.shape_change import changed

T = TypeVar("T")


class Lab:
    """A lab that lasts as long as the `with` block (or from `up()` to `down()`)."""

    def __init__(
        self, nodes: int = lifecycle.DEFAULT_NODES, name: str | None = None, **options: Any
    ) -> None:
        """Without a name it gets a random one.

        `options` are those of `shape.shape`: `profile`, `family`, `underlay`, `network`, `store`,
        and the fields of a fabric. Raises InputError for what makes no sense.
        """
        self.info = LabInfo(name or f"t-{secrets.token_hex(4)}")
        self._node_count = nodes
        self._shape = shape(**options)
        self._api: _Api | None = None

    @classmethod
    def existing(cls, name: str) -> Lab:
        """A handle of a lab that is up; leaving a `with` block of it takes it down."""
        lab = cls(name=name)
        if lab.info.record() is None:
            raise LabError(f'no lab is named "{name}"', remedy="see `podwire lab list`")
        return lab

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(self, *exc_info: object) -> None:
        self.down()

    def up(self) -> Lab:
        """Make the lab and wait until it is ready."""
        try:
            lifecycle.up(self.name, self._node_count, shape=self._shape)
        except NotReadyError:
            lifecycle.down(self.name)
            raise
        return self

    def down(self) -> None:
        """Remove the lab."""
        if self._api is not None:
            self._api.close()
            self._api = None
        lifecycle.down(self.name)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def kubeconfig(self) -> Path:
        return self.info.kubeconfig

    @property
    def nodes(self) -> list[LabNode]:
        record = self.info.record()
        if record is None:
            return []
        return [LabNode(self, node.name, record.ips(node)) for node in record.nodes]

    def node(self, name: str) -> LabNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise InputError(f"lab {self.name} has no node {name!r}", field="node")

    def add_node(self) -> LabNode:
        """Add a node and wait until it is ready."""
        return self.node(lifecycle.add_node(self.info).name)

    def remove_node(self, name: str) -> None:
        lifecycle.remove_node(self.info, name)

    # -- faults -------------------------------------------------------------------------------

    def partition(
        self,
        node: str,
        *others: str,
        protocol: Protocol | None = None,
        port: int = 0,
        api: bool = False,
    ) -> None:
        """Cut a node off from others, from all without a name, or with `api` from the API."""
        disruption.partition(self.info, node, others, protocol=protocol, port=port, api=api)

    def kill(self, *names: str) -> None:
        """Have nodes, `api` or `etcd` die at once."""
        disruption.kill(self.info, names)

    def heal(self, *names: str, addresses: tuple[str, ...] = ()) -> None:
        """Undo what is wrong with these, or with everything, and wait until it is ready."""
        disruption.heal(self.info, names, addresses=addresses)

    def set_profile(self, profile: str | None = None, **fabric: Choice | None) -> None:
        """Use another fabric from now on, and wait until all nodes do."""
        before = existing(self.info).shape
        after = changed(before, {"profile": profile, **fabric})
        rollout.set_shape(self.info, after, Silent())

    # -- processes ----------------------------------------------------------------------------

    def process(self, name: str) -> ProcessStatus:
        """One of the lab's processes: `api`, `node1/agent`, `node1/kubelet`."""
        with Control(self.info) as control:
            found = control.request("status").process(name)
        if found is None:
            raise InputError(f"lab {self.name} has no process {name!r}", field="process")
        return found

    def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until all nodes, and all pods that are not to end, are Ready."""
        wait_ready(self.info, timeout_s=timeout_s)
        for pod in self.call(lambda client: client.list(PODS)).items:
            if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                metadata = pod["metadata"]
                self.pod(metadata["name"], metadata["namespace"]).wait_ready(timeout_s)

    # -- pods ---------------------------------------------------------------------------------

    def pod(self, name: str, namespace: str = "default") -> LabPod:
        """A handle of a pod, which need not exist yet."""
        return LabPod(self, name, namespace)

    def run(
        self,
        name: str,
        command: Sequence[str] = ("sleep", "infinity"),
        *,
        node: str | None = None,
        namespace: str = "default",
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> LabPod:
        """Create a pod of one container. `spec` has further fields of the Pod's spec."""
        container = {"name": "main", "image": "none", "command": list(command)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
            "spec": {"containers": [container], **({"nodeName": node} if node else {}), **spec},
        }
        self.call(lambda client: client.create(PODS, pod))
        return self.pod(name, namespace)

    def apply(self, manifest: Mapping[str, Any] | str | Path) -> list[Json]:
        """Create or change objects: one as a dict, or a YAML text or file of several."""
        import yaml

        if isinstance(manifest, Mapping):
            documents = [dict(manifest)]
        else:
            text = manifest.read_text() if isinstance(manifest, Path) else manifest
            documents = [document for document in yaml.safe_load_all(text) if document]
        return [self._apply(document) for document in documents]

    def _apply(self, document: Json) -> Json:
        api_version, kind = str(document.get("apiVersion")), str(document.get("kind"))
        resource = find_by_kind(api_version, kind)
        if resource is None:
            raise InputError(f"{api_version} {kind} is not known here", field="kind")
        metadata = document.get("metadata") or {}
        namespace = metadata.get("namespace", "default") if resource.namespaced else None

        async def apply(client: KubeClient) -> Json:
            try:
                return await client.merge_patch(resource, metadata["name"], document, namespace)
            except NotFoundError:
                return await client.create(resource, document, namespace)

        return self.call(apply)

    def delete_pod(self, name: str, namespace: str, grace_s: int | None, timeout_s: float) -> None:
        """Delete a pod and wait until its object is gone."""
        try:
            self.call(lambda client: client.delete(PODS, name, namespace, grace_s))
            self.wait(PODS, name, namespace, lambda _pod: False, "gone", timeout_s, exists=True)
        except NotFoundError:
            return

    # -- any object ---------------------------------------------------------------------------

    def client(self) -> KubeClient:
        """A client of the lab's API, for `async with` in an event loop of the caller's."""
        return KubeClient(ClientConfig(server=f"unix://{self.info.api_socket}"))

    def call(self, work: Callable[[KubeClient], Coroutine[Any, Any, T]]) -> T:
        """Run `work` with a client of the lab's API and return its result."""
        if self._api is None:
            self._api = _Api(self.client())
        return self._api.call(work)

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        """One object. Raises NotFoundError."""
        return self.call(lambda client: client.get(resource, name, namespace))

    def wait(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        condition: Callable[[Json], bool],
        what: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        exists: bool = False,
    ) -> Json:
        """Wait until `condition` holds of an object, and return it.

        It need not exist yet, unless `exists`. Raises NotFoundError when it does not then, or is
        deleted meanwhile; LabError after `timeout_s`.
        """
        gone = NotFoundError(404, "NotFound", f'{resource.plural} "{name}" not found')
        seen: list[Json] = []

        async def wait(client: KubeClient) -> Json:
            selector = f"metadata.name={name}"
            listed = await client.list(resource, namespace, field_selector=selector)
            if exists and not listed.items:
                raise gone
            for item in listed.items:
                seen.append(item)
                if condition(item):
                    return item
            events = client.watch(
                resource,
                namespace,
                resource_version=listed.resource_version,
                field_selector=selector,
            )
            async with aclosing(events) as events:
                async for event in events:
                    if not isinstance(event, WatchEvent):
                        continue
                    if event.type == "DELETED":
                        raise gone
                    seen.append(event.object)
                    if condition(event.object):
                        return event.object
            return await wait(client)

        async def limited(client: KubeClient) -> Json:
            async with asyncio.timeout(timeout_s):
                return await wait(client)

        try:
            return self.call(limited)
        except TimeoutError:
            last = (seen[-1].get("status") or "no status") if seen else "not there"
            raise LabError(
                f"{resource.singular} {name} was not {what} within {timeout_s:g} s: {last}"
            ) from None

    def node_object(self, name: str) -> Json:
        """The Node object of a node."""
        return self.get(NODES, name)

    def __repr__(self) -> str:
        return f"<lab {self.name}>"


class _Api:
    """A client on an event loop in a thread of its own."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(client.__aenter__())

    def call(self, work: Callable[[KubeClient], Coroutine[Any, Any, T]]) -> T:
        return self._run(work(self._client))

    def close(self) -> None:
        self._run(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a condition looks at the object that it is given, not at the API")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
