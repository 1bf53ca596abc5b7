"""Lists: namespaces, selectors, pages, tables, and discovery."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.api.conftest import Answer, Api, StartServer, config_map, node, pod

MAPS = "namespaces/default/configmaps"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def names(answer: Answer) -> list[str]:
    assert answer.code == 200, answer.body
    return [item["metadata"]["name"] for item in answer.body["items"]]


async def get_as(api: Api, path: str, accept: str) -> Any:
    async with api.session.get(api.url(path), headers={"Accept": accept}) as answer:
        return await answer.json()


async def test_lists_of_one_and_of_all_namespaces(api: Api) -> None:
    await api.post("namespaces/kube-system/pods", pod("b"))
    await api.post("namespaces/default/pods", pod("z"))
    await api.post("namespaces/default/pods", pod("a"))
    assert names(await api.get("namespaces/default/pods")) == ["a", "z"]
    everything = await api.get("pods")
    assert names(everything) == ["a", "z", "b"]
    assert everything.body["kind"] == "PodList"
    assert names(await api.get("namespaces/nowhere/pods")) == []


async def test_label_and_field_selectors(api: Api) -> None:
    for name, labels in {"a": {"app": "web"}, "b": {"app": "db", "tier": "x"}, "c": {}}.items():
        manifest = pod(name, **({"nodeName": "node1"} if name == "b" else {}))
        manifest["metadata"]["labels"] = labels
        await api.post("namespaces/default/pods", manifest)
    assert names(await api.get("pods", labelSelector="app in (web,db),!tier")) == ["a"]
    assert names(await api.get("pods", labelSelector="app!=web")) == ["b", "c"]
    assert names(await api.get("pods", fieldSelector="spec.nodeName=node1")) == ["b"]
    assert names(await api.get("pods", fieldSelector="spec.nodeName=")) == ["a", "c"]
    selected = "metadata.name!=a,status.phase=Pending,metadata.namespace=default"
    assert names(await api.get("pods", fieldSelector=selected)) == ["b", "c"]
    refused = await api.get("pods", fieldSelector="spec.containers=x")
    assert (refused.code, "spec.nodeName" in refused.body["message"]) == (400, True)
    assert (await api.get("pods", labelSelector="a b")).code == 400


async def test_pages_are_one_snapshot_whatever_happens_between(api: Api) -> None:
    for index in range(10):
        await api.post(MAPS, config_map(f"m{index}", x="old"))
    first = (await api.get(MAPS, limit=4)).body
    assert first["metadata"]["remainingItemCount"] == 6
    await api.delete(f"{MAPS}/m7")
    await api.delete(f"{MAPS}/m1")
    await api.post(MAPS, config_map("m55"))
    await api.patch(f"{MAPS}/m8", {"data": {"x": "new"}})
    await api.delete(f"{MAPS}/m9")
    await api.post(MAPS, config_map("m9", x="again"))
    items, pages, page = first["items"], 1, first
    while token := page["metadata"].get("continue"):
        page = (await api.get(MAPS, limit=4, **{"continue": token})).body
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        items += page["items"]
        pages += 1
    assert [item["metadata"]["name"] for item in items] == [f"m{index}" for index in range(10)]
    assert {item["data"]["x"] for item in items} == {"old"}
    assert pages == 3


async def test_pages_with_a_selector(api: Api) -> None:
    for index in range(20):
        manifest = config_map(f"m{index:02}")
        manifest["metadata"]["labels"] = {"odd": str(index % 2)}
        await api.post(MAPS, manifest)
    found: list[str] = []
    query: dict[str, Any] = {"limit": 3, "labelSelector": "odd=1"}
    while True:
        page = await api.get(MAPS, **query)
        assert "remainingItemCount" not in page.body["metadata"]
        found += names(page)
        if "continue" not in page.body["metadata"]:
            break
        query["continue"] = page.body["metadata"]["continue"]
    assert found == [f"m{index:02}" for index in range(1, 20, 2)]


async def test_page_of_a_forgotten_revision_is_gone(start: StartServer) -> None:
    async with start(history=5) as api:
        for index in range(3):
            await api.post(MAPS, config_map(f"m{index}"))
        page = (await api.get(MAPS, limit=1)).body
        for index in range(20):
            await api.patch(f"{MAPS}/m0", {"data": {"x": str(index)}})
        gone = await api.get(MAPS, limit=1, **{"continue": page["metadata"]["continue"]})
        assert (gone.code, gone.body["reason"]) == (410, "Expired")
        assert (await api.get(MAPS, **{"continue": "nonsense"})).code == 400


async def test_list_of_a_future_revision_says_so(api: Api) -> None:
    answer = await api.get("pods", resourceVersion=10**9)
    assert answer.code == 504
    assert answer.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert (await api.get("pods", resourceVersion="x")).code == 400


async def test_table_has_the_columns_of_kubectl(api: Api) -> None:
    await api.post("namespaces/default/pods", pod(nodeName="node1"))
    status = {
        "phase": "Running",
        "podIP": "10.244.0.2",
        "podIPs": [{"ip": "10.244.0.2"}],
        "containerStatuses": [
            {"name": "main", "ready": True, "restartCount": 2, "state": {"running": {}}}
        ],
    }
    await api.patch("namespaces/default/pods/a/status", {"status": status})
    table = await get_as(api, "namespaces/default/pods", TABLE)
    assert table["kind"] == "Table"
    row = dict(
        zip(
            (column["name"] for column in table["columnDefinitions"]),
            table["rows"][0]["cells"],
            strict=True,
        )
    )
    assert row | {"Age": ""} == {
        "Name": "a",
        "Ready": "1/1",
        "Status": "Running",
        "Restarts": "2",
        "Age": "",
        "IP": "10.244.0.2",
        "Node": "node1",
        "Nominated Node": "<none>",
        "Readiness Gates": "<none>",
    }
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    {"name": "main", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
                ],
            },
            "CrashLoopBackOff",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 3}}}],
            },
            "ExitCode:3",
        ),
    ],
)
async def test_table_status_word(api: Api, status: dict[str, Any], word: str) -> None:
    await api.post("namespaces/default/pods", pod())
    await api.patch("namespaces/default/pods/a/status", {"status": status})
    table = await get_as(api, "namespaces/default/pods/a", TABLE)
    assert table["rows"][0]["cells"][2] == word


async def test_node_table(api: Api) -> None:
    manifest = node(labels={"node-role.kubernetes.io/control-plane": ""})
    await api.post("nodes", {**manifest, "spec": {"unschedulable": True}})
    cells = (await get_as(api, "nodes", TABLE))["rows"][0]["cells"]
    assert cells[:3] == ["node1", "Ready,SchedulingDisabled", "control-plane"]


async def test_partial_metadata_and_yaml(api: Api) -> None:
    await api.post(MAPS, config_map(x="1"))
    form = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    partial = await get_as(api, MAPS, form)
    assert partial["kind"] == "PartialObjectMetadataList"
    assert "data" not in partial["items"][0]
    async with api.session.get(api.url(f"{MAPS}/a"), headers={"Accept": "application/yaml"}) as raw:
        assert "kind: ConfigMap" in await raw.text()
    refused = await get_as(api, MAPS, "text/html")
    assert refused["code"] == 406


async def test_discovery(api: Api) -> None:
    assert (await api.get("/version")).body["major"] == "1"
    assert (await api.get("/api")).body["versions"] == ["v1"]
    groups = (await api.get("/apis")).body["groups"]
    assert [group["name"] for group in groups] == ["coordination.k8s.io", "podwire.io"]
    assert (await api.get("/apis/coordination.k8s.io")).body["kind"] == "APIGroup"
    core = {entry["name"]: entry for entry in (await api.get("/api/v1")).body["resources"]}
    assert core["pods"]["shortNames"] == ["po"]
    assert not core["nodes"]["namespaced"]
    assert {"pods/status", "pods/log", "pods/exec", "nodes/status"} <= core.keys()
    leases = (await api.get("/apis/coordination.k8s.io/v1")).body
    assert leases["resources"][0]["kind"] == "Lease"
    for path in ("/healthz", "/readyz", "/livez"):
        assert (await api.get(path)).body == b"ok"


async def test_openapi_has_every_kind(api: Api) -> None:
    index = (await api.get("/openapi/v3")).body["paths"]
    groups = {"apis/coordination.k8s.io/v1", "apis/podwire.io/v1alpha1"}
    assert set(index) == {"api/v1", *groups}
    document = (await api.get(index["api/v1"]["serverRelativeURL"].partition("?")[0])).body
    patch = document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]
    assert {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}} in patch[
        "parameters"
    ]
    pod_schema = document["components"]["schemas"]["io.k8s.api.core.v1.Pod"]
    containers = pod_schema["properties"]["spec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
