"""Watches: order, completeness, selectors, bookmarks, and the end of what is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from podwire.lab.api import watching
from tests.lab.api.conftest import Api, StartServer, config_map, node, pod

MAPS = "namespaces/default/configmaps"


async def take(events: AsyncIterator[Any], count: int) -> list[tuple[str, str]]:
    """The next events, as (type, object's name)."""
    taken: list[tuple[str, str]] = []
    async with asyncio.timeout(60):
        while len(taken) < count:
            event = await anext(events)
            taken.append((event["type"], event["object"]["metadata"].get("name", "")))
    return taken


async def test_watch_shows_what_happens_in_order(api: Api) -> None:
    version = (await api.get(MAPS)).body["metadata"]["resourceVersion"]
    async with api.watch(MAPS, resourceVersion=version) as events:
        await api.post(MAPS, config_map())
        await api.post("namespaces/kube-system/configmaps", config_map("elsewhere"))
        await api.patch(f"{MAPS}/a", {"data": {"x": "1"}})
        await api.delete(f"{MAPS}/a")
        assert await take(events, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_deletion_carries_the_last_state_and_a_new_version(api: Api) -> None:
    created = (await api.post(MAPS, config_map(x="1"))).body
    version = created["metadata"]["resourceVersion"]
    await api.delete(f"{MAPS}/a")
    async with api.watch(MAPS, resourceVersion=version) as events:
        event = await anext(events)
    assert event["object"]["data"] == {"x": "1"}
    assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_watch_without_a_version_begins_with_what_there_is(api: Api) -> None:
    await api.post(MAPS, config_map("a"))
    await api.post(MAPS, config_map("b"))
    async with api.watch(MAPS) as events:
        await api.delete(f"{MAPS}/a")
        assert await take(events, 3) == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]


async def test_selected_objects_come_into_view_and_go(api: Api) -> None:
    version = (await api.get("pods")).body["metadata"]["resourceVersion"]
    selector = {"fieldSelector": "spec.nodeName=node1", "labelSelector": "app"}
    async with api.watch("pods", resourceVersion=version, **selector) as events:
        path = "namespaces/default/pods"
        await api.post(path, pod("a", nodeName="node1"))
        await api.post(path, pod("b", nodeName="node2"))
        for labels in ({"app": "x"}, {"app": "y"}, {"app": None}, {"app": "z"}):
            await api.patch(f"{path}/a", {"metadata": {"labels": labels}})
        await api.delete(f"{path}/a", gracePeriodSeconds=0)
        seen = await take(events, 5)
    assert [type_ for type_, _ in seen] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert {name for _, name in seen} == {"a"}


async def test_list_then_watch_misses_nothing_under_writes(api: Api) -> None:
    """Readers that list in pages and then watch agree with the end state, at whatever moment."""

    async def write(worker: int) -> None:
        for index in range(60):
            name = f"m{worker}-{index % 7}"
            answer = await api.post(MAPS, config_map(name, x=str(index)))
            if answer.code == 409 and index % 3:
                await api.patch(f"{MAPS}/{name}", {"data": {"x": str(index)}})
            elif answer.code == 409:
                await api.delete(f"{MAPS}/{name}")

    async def read(delay: int) -> dict[str, str]:
        for _ in range(delay):
            await api.get("/healthz")
        page = (await api.get(MAPS, limit=3)).body
        items = page["items"]
        while token := page["metadata"].get("continue"):
            page = (await api.get(MAPS, limit=3, **{"continue": token})).body
            items += page["items"]
        state = {item["metadata"]["name"]: item["data"]["x"] for item in items}
        last = int(page["metadata"]["resourceVersion"])
        async with api.watch(MAPS, resourceVersion=last) as events:
            async for event in events:
                name = event["object"]["metadata"]["name"]
                version = int(event["object"]["metadata"]["resourceVersion"])
                assert version > last
                last = version
                if name == "end":
                    return state
                assert (event["type"] == "ADDED") == (name not in state), event
                if event["type"] == "DELETED":
                    del state[name]
                else:
                    state[name] = event["object"]["data"]["x"]
        raise AssertionError("the watch ended early")

    readers = [asyncio.create_task(read(delay * 9)) for delay in range(12)]
    await asyncio.gather(*(write(worker) for worker in range(4)))
    final = {
        item["metadata"]["name"]: item["data"]["x"] for item in (await api.get(MAPS)).body["items"]
    }
    await api.post(MAPS, config_map("end"))
    async with asyncio.timeout(60):
        for reader in readers:
            assert await reader == final


async def test_forgotten_version_is_gone(start: StartServer) -> None:
    async with start(history=5) as api:
        await api.post(MAPS, config_map())
        version = (await api.get(MAPS)).body["metadata"]["resourceVersion"]
        for index in range(20):
            await api.patch(f"{MAPS}/a", {"data": {"x": str(index)}})
        gone = await api.get(MAPS, watch="true", resourceVersion=version)
        assert (gone.code, gone.body["reason"]) == (410, "Expired")
        fresh = (await api.get(MAPS)).body["metadata"]["resourceVersion"]
        async with api.watch(MAPS, resourceVersion=fresh) as events:
            await api.delete(f"{MAPS}/a")
            assert await take(events, 1) == [("DELETED", "a")]


async def test_version_of_another_cluster_is_gone(api: Api) -> None:
    """A client that outlived its lab lists again, and doesn't wait for revisions to get there."""
    assert (await api.get(MAPS, watch="true", resourceVersion=10**6)).code == 410


async def test_idle_watch_survives_compaction(start: StartServer) -> None:
    async with start(history=5) as api:
        version = (await api.get("nodes")).body["metadata"]["resourceVersion"]
        async with api.watch("nodes", resourceVersion=version) as events:
            await api.post(MAPS, config_map())
            for index in range(1200):
                await api.patch(f"{MAPS}/a", {"data": {"x": str(index)}})
            await api.post("nodes", node())
            assert await take(events, 1) == [("ADDED", "node1")]


async def test_versions_survive_a_restart(start: StartServer) -> None:
    async with start() as api:
        version = (await api.get(MAPS)).body["metadata"]["resourceVersion"]
        await api.post(MAPS, config_map())
        await api.delete(f"{MAPS}/a")
    async with start() as api:
        assert int((await api.get(MAPS)).body["metadata"]["resourceVersion"]) == int(version) + 2
        async with api.watch(MAPS, resourceVersion=version) as events:
            assert await take(events, 2) == [("ADDED", "a"), ("DELETED", "a")]


async def test_watch_ends_after_its_timeout_with_a_bookmark(api: Api) -> None:
    query = {"resourceVersion": 1, "timeoutSeconds": 1, "allowWatchBookmarks": "true"}
    async with api.watch("pods", **query) as events:
        everything = [event async for event in events]
    assert [event["type"] for event in everything] == ["BOOKMARK"]
    newest = (await api.get("pods")).body["metadata"]["resourceVersion"]
    assert everything[0]["object"]["metadata"]["resourceVersion"] == newest


async def test_quiet_watch_gets_bookmarks(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BOOKMARK_S", 0.05)
    async with api.watch("pods", resourceVersion=1, allowWatchBookmarks="true") as events:
        first = await anext(events)
        await api.post(MAPS, config_map())
        newest = (await api.get("pods")).body["metadata"]["resourceVersion"]
        async with asyncio.timeout(60):
            while (await anext(events))["object"]["metadata"]["resourceVersion"] != newest:
                pass
    assert first["object"]["kind"] == "Pod"


async def test_initial_events_end_with_a_bookmark(api: Api) -> None:
    await api.post(MAPS, config_map())
    query = {"sendInitialEvents": "true", "allowWatchBookmarks": "true", "resourceVersion": 1}
    async with api.watch(MAPS, **query) as events:
        assert (await anext(events))["type"] == "ADDED"
        end = (await anext(events))["object"]["metadata"]
        assert end["annotations"] == {"k8s.io/initial-events-end": "true"}
        await api.delete(f"{MAPS}/a")
        assert await take(events, 1) == [("DELETED", "a")]


async def test_watch_ends_with_its_client(api: Api) -> None:
    async with api.watch(MAPS, resourceVersion=1):
        assert api.server.hub.waiting("configmaps") == 1
    async with asyncio.timeout(60):
        while api.server.hub.waiting("configmaps"):
            await api.get("/healthz")


async def test_watch_as_table(api: Api) -> None:
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    await api.post("namespaces/default/pods", pod())
    async with api.session.get(api.url("pods?watch=1"), headers=accept) as answer:
        event = json.loads(await answer.content.readline())
    assert event["object"]["rows"][0]["cells"][:3] == ["a", "0/1", "Pending"]


async def test_stopping_the_server_ends_watches(start: StartServer) -> None:
    async with start() as api, api.watch("pods", resourceVersion=1) as events:
        api.server.hub.close()
        async with asyncio.timeout(60):
            assert [event async for event in events] == []


async def test_many_watchers_see_the_same(api: Api) -> None:
    async def follow(ready: asyncio.Barrier) -> list[str]:
        async with api.watch("nodes", resourceVersion=1) as events:
            await ready.wait()
            return [
                (await anext(events))["object"]["metadata"]["resourceVersion"] for _ in range(50)
            ]

    ready = asyncio.Barrier(101)
    followers = [asyncio.create_task(follow(ready)) for _ in range(100)]
    await ready.wait()
    await asyncio.gather(*(api.post("nodes", node(f"n{index}")) for index in range(50)))
    async with asyncio.timeout(60):
        seen = await asyncio.gather(*followers)
    assert all(one == seen[0] for one in seen)
    assert [int(version) for version in seen[0]] == sorted(int(version) for version in seen[0])
