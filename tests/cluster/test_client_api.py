"""The client's verbs against the embedded API server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
from typing import Any

import msgspec
import pytest

from podwire.cluster.kube import (
    CONFIGMAPS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    Bookmark,
    ClientConfig,
    KubeClient,
    WatchEvent,
)
from podwire.cluster.kube.discovery import discover
from podwire.cluster.kube.reflect import RELIST_CODES
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ApiUnavailableError,
    ConflictError,
    InvalidError,
    NotFoundError,
)

from .api_process import ApiProcess


class Meta(msgspec.Struct):
    name: str


class Named(msgspec.Struct):
    metadata: Meta


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


@pytest.fixture
async def namespace(client: KubeClient) -> str:
    """A namespace that only this test uses."""
    name = f"t-{secrets.token_hex(4)}"
    await client.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    return name


async def test_create_get_update_delete(client: KubeClient, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, config_map("a", x="1"), namespace)
    assert made == await client.get(CONFIGMAPS, "a", namespace)
    made["data"]["x"] = "2"
    changed = await client.update(CONFIGMAPS, made)
    assert changed["data"] == {"x": "2"}
    patched = await client.merge_patch(CONFIGMAPS, "a", {"data": {"x": None, "y": "3"}}, namespace)
    assert patched["data"] == {"y": "3"}
    await client.delete(CONFIGMAPS, "a", namespace)
    with pytest.raises(NotFoundError) as caught:
        await client.get(CONFIGMAPS, "a", namespace)
    assert caught.value.reason == "NotFound"


async def test_an_object_can_be_decoded_into_a_struct(client: KubeClient, namespace: str) -> None:
    await client.create(CONFIGMAPS, config_map("a"), namespace)
    assert await client.get(CONFIGMAPS, "a", namespace, type=Named) == Named(Meta("a"))


async def test_refusals_have_types(client: KubeClient, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, config_map("a"), namespace)
    with pytest.raises(AlreadyExistsError):
        await client.create(CONFIGMAPS, config_map("a"), namespace)
    await client.update(CONFIGMAPS, {**made, "data": {"x": "1"}})
    with pytest.raises(ConflictError):
        await client.update(CONFIGMAPS, {**made, "data": {"x": "2"}})
    with pytest.raises(InvalidError) as caught:
        await client.create(CONFIGMAPS, config_map("Not A Name"), namespace)
    assert caught.value.details["causes"][0]["field"] == "metadata.name"


async def test_a_subresource_is_updated_alone(client: KubeClient) -> None:
    name = f"n-{secrets.token_hex(4)}"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    await client.create(NODES, node)
    condition = {"type": "Ready", "status": "True"}
    patched = await client.merge_patch(
        NODES, name, {"status": {"conditions": [condition]}}, subresource="status"
    )
    assert patched["status"]["conditions"][0]["type"] == "Ready"
    await client.delete(NODES, name)


async def test_delete_only_the_very_object(client: KubeClient, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, config_map("a"), namespace)
    with pytest.raises(ConflictError):
        await client.delete(CONFIGMAPS, "a", namespace, uid="another")
    await client.delete(CONFIGMAPS, "a", namespace, uid=made["metadata"]["uid"])


async def test_lists_are_read_page_by_page(client: KubeClient, namespace: str) -> None:
    names = [f"c{index}" for index in range(7)]
    for name in names:
        await client.create(CONFIGMAPS, config_map(name), namespace)
    listed = await client.list(CONFIGMAPS, namespace, limit=3, type=Named)
    assert [item.metadata.name for item in listed.items] == names
    assert int(listed.resource_version) > 0
    whole = await client.list(CONFIGMAPS, namespace)
    assert {item["kind"] for item in whole.items} == {"ConfigMap"}


async def test_selectors(client: KubeClient, namespace: str) -> None:
    for name, tier in (("a", "web"), ("b", "db")):
        labelled = config_map(name)
        labelled["metadata"]["labels"] = {"tier": tier}
        await client.create(CONFIGMAPS, labelled, namespace)

    async def names(
        label_selector: str | None = None, field_selector: str | None = None
    ) -> list[str]:
        listed = await client.list(
            CONFIGMAPS,
            namespace,
            type=Named,
            label_selector=label_selector,
            field_selector=field_selector,
        )
        return [item.metadata.name for item in listed.items]

    assert await names(label_selector="tier=db") == ["b"]
    assert await names(label_selector="tier in (web,db),tier!=db") == ["a"]
    assert await names(field_selector="metadata.name=b") == ["b"]


async def test_watch_tells_every_change_in_order(client: KubeClient, namespace: str) -> None:
    listed = await client.list(CONFIGMAPS, namespace)
    opened = asyncio.Event()
    seen = []

    async def follow() -> None:
        events = client.watch(
            CONFIGMAPS,
            namespace,
            resource_version=listed.resource_version,
            on_open=opened.set,
            type=Named,
        )
        async for event in events:
            if isinstance(event, Bookmark):
                continue
            seen.append((event.type, event.object.metadata.name))
            if event.type == "DELETED":
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await opened.wait()
        await client.create(CONFIGMAPS, config_map("a"), namespace)
        await client.merge_patch(CONFIGMAPS, "a", {"data": {"x": "1"}}, namespace)
        await client.delete(CONFIGMAPS, "a", namespace)
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_watch_carries_objects_larger_than_any_buffer(
    client: KubeClient, namespace: str
) -> None:
    listed = await client.list(CONFIGMAPS, namespace)
    await client.create(CONFIGMAPS, config_map("big", x="ä" * 400_000), namespace)
    events = client.watch(CONFIGMAPS, namespace, resource_version=listed.resource_version)
    async with asyncio.timeout(60):
        async for event in events:
            assert isinstance(event, WatchEvent)
            assert len(event.object["data"]["x"]) == 400_000
            break


async def test_a_version_that_the_server_does_not_have_is_told(client: KubeClient) -> None:
    with pytest.raises(ApiError) as caught:
        async with asyncio.timeout(60):
            events = client.watch(PODS, resource_version="999999999")
            async for _ in events:
                pass
    assert caught.value.status in RELIST_CODES


async def test_discovery_finds_what_is_served(client: KubeClient) -> None:
    found = await discover(client)
    for resource in (PODS, NODES, NAMESPACES, CONFIGMAPS, LEASES):
        served = next(each for each in found if each.kind == resource.kind)
        assert served.path("x") == resource.path("x")


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    for server in ("unix:///nonexistent/api.sock", "http://127.0.0.1:1"):
        async with KubeClient(ClientConfig(server=server)) as client:
            with pytest.raises(ApiUnavailableError, match="cannot reach"):
                await client.list(PODS)


async def test_a_file_that_is_no_socket_is_unavailable(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    async with KubeClient(ClientConfig(server=f"unix://{tmp_path}/file")) as client:
        with contextlib.suppress(ApiUnavailableError):
            await client.list(PODS)
            pytest.fail("listed pods from a file")


async def test_a_client_that_is_left_is_closed(api: ApiProcess) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: told.append(context["message"])
    )
    async with KubeClient(api.config) as client:
        await client.list(CONFIGMAPS, "default")
    # Of a session that nobody has closed, aiohttp tells when it is collected.
    del client
    gc.collect()
    assert told == []
