"""Objects over HTTP: create, read, update, patch, delete, and what each refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.lab.api.conftest import Api, config_map, node, pod

PODS = "namespaces/default/pods"
MAPS = "namespaces/default/configmaps"


async def test_created_object_gets_identity_and_defaults(api: Api) -> None:
    created = await api.post(PODS, pod())
    assert created.code == 201
    metadata, spec = created.body["metadata"], created.body["spec"]
    assert metadata["namespace"] == "default"
    assert metadata["generation"] == 1
    assert len(metadata["uid"]) == 36
    assert datetime.fromisoformat(metadata["creationTimestamp"])
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["dnsPolicy"] == "ClusterFirst"
    assert created.body["status"] == {"phase": "Pending"}
    assert (await api.get(f"{PODS}/a")).body == created.body


async def test_resource_versions_grow_over_all_kinds(api: Api) -> None:
    answers = [
        await api.post(PODS, pod()),
        await api.post("nodes", node()),
        await api.post(MAPS, config_map()),
        await api.patch("nodes/node1", {"metadata": {"labels": {"a": "b"}}}),
    ]
    versions = [int(answer.body["metadata"]["resourceVersion"]) for answer in answers]
    assert versions == sorted(set(versions))
    assert int((await api.get("pods")).body["metadata"]["resourceVersion"]) >= versions[-1]


async def test_generate_name(api: Api) -> None:
    manifest = pod()
    manifest["metadata"] = {"generateName": "web-"}
    names = [(await api.post(PODS, manifest)).body["metadata"]["name"] for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


async def test_create_twice_is_a_conflict(api: Api) -> None:
    await api.post(PODS, pod())
    again = await api.post(PODS, pod())
    assert (again.code, again.body["reason"]) == (409, "AlreadyExists")
    assert again.body["details"] == {"name": "a", "kind": "pods"}


async def test_status_of_a_new_pod_is_the_servers(api: Api) -> None:
    created = await api.post(PODS, {**pod(), "status": {"phase": "Running", "podIP": "x"}})
    assert created.body["status"] == {"phase": "Pending"}


async def test_node_registers_with_its_status(api: Api) -> None:
    assert (await api.post("nodes", node())).body["status"]["conditions"][0]["status"] == "True"


async def test_stale_update_is_a_conflict(api: Api) -> None:
    first = (await api.post(MAPS, config_map(x="1"))).body
    assert (await api.put(f"{MAPS}/a", {**first, "data": {"x": "2"}})).code == 200
    stale = await api.put(f"{MAPS}/a", {**first, "data": {"x": "3"}})
    assert (stale.code, stale.body["reason"]) == (409, "Conflict")
    assert (await api.get(f"{MAPS}/a")).body["data"] == {"x": "2"}


async def test_update_without_a_version_is_unconditional(api: Api) -> None:
    await api.post(MAPS, config_map(x="1"))
    assert (await api.put(f"{MAPS}/a", config_map(x="2"))).body["data"] == {"x": "2"}


async def test_update_cannot_change_identity(api: Api) -> None:
    old = (await api.post(MAPS, config_map())).body
    new = {**old, "metadata": {**old["metadata"], "creationTimestamp": "2001-01-01T00:00:00Z"}}
    kept = (await api.put(f"{MAPS}/a", new)).body["metadata"]
    assert kept == old["metadata"]
    new = {**old, "metadata": {**old["metadata"], "uid": "another"}}
    assert (await api.put(f"{MAPS}/a", new)).code == 409


async def test_update_that_changes_nothing_is_not_written(api: Api) -> None:
    old = (await api.post(MAPS, config_map(x="1"))).body
    assert (await api.put(f"{MAPS}/a", config_map(x="1"))).body == old
    assert (await api.patch(f"{MAPS}/a", {"data": {"x": "1"}})).body == old


async def test_spec_and_status_are_written_apart(api: Api) -> None:
    old = (await api.post(PODS, pod(nodeName="node1"))).body
    running = {**old, "status": {"phase": "Running"}, "spec": {"containers": []}}
    via_status = (await api.put(f"{PODS}/a/status", running)).body
    assert via_status["status"]["phase"] == "Running"
    assert via_status["spec"] == old["spec"]
    main = {**via_status, "status": {"phase": "Failed"}}
    assert (await api.put(f"{PODS}/a", main)).body["status"]["phase"] == "Running"


async def test_generation_counts_spec_changes_only(api: Api) -> None:
    async def generation(path: str, patch: dict[str, Any]) -> int:
        answer = await api.patch(path, patch)
        assert answer.code == 200, answer.body
        return int(answer.body["metadata"]["generation"])

    await api.post(PODS, pod())
    assert await generation(f"{PODS}/a", {"metadata": {"labels": {"a": "b"}}}) == 1
    assert await generation(f"{PODS}/a/status", {"status": {"phase": "Running"}}) == 1
    assert await generation(f"{PODS}/a", {"spec": {"activeDeadlineSeconds": 9}}) == 2


async def test_annotations_may_be_written_through_status(api: Api) -> None:
    """Flannel's subnet manager patches its lease onto the node this way."""
    await api.post("nodes", node())
    lease = {"flannel.alpha.coreos.com/backend-type": "vxlan"}
    patch = {"metadata": {"annotations": lease}}
    answer = await api.patch("nodes/node1/status", patch, "strategic-merge-patch")
    assert answer.body["metadata"]["annotations"] == lease


async def test_merge_patch_replaces_lists_and_strategic_merges_conditions(api: Api) -> None:
    await api.post("nodes", node())
    unavailable = {"type": "NetworkUnavailable", "status": "False"}
    patch = {"status": {"conditions": [unavailable]}}
    merged = await api.patch("nodes/node1/status", patch, "strategic-merge-patch")
    assert [c["type"] for c in merged.body["status"]["conditions"]] == [
        "Ready",
        "NetworkUnavailable",
    ]
    replaced = await api.patch("nodes/node1/status", patch)
    assert replaced.body["status"]["conditions"] == [unavailable]


async def test_json_patch(api: Api) -> None:
    await api.post(MAPS, config_map(x="1"))
    patch = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "add", "path": "/data/y", "value": "2"},
        {"op": "remove", "path": "/data/x"},
    ]
    assert (await api.patch(f"{MAPS}/a", patch, "json-patch")).body["data"] == {"y": "2"}
    refused = await api.patch(f"{MAPS}/a", patch, "json-patch")
    assert refused.code == 400
    assert "operation 0" in refused.body["message"]


async def test_patch_with_a_stale_version_is_a_conflict(api: Api) -> None:
    await api.post(MAPS, config_map())
    patch = {"metadata": {"resourceVersion": "1"}, "data": {"x": "1"}}
    assert (await api.patch(f"{MAPS}/a", patch)).code == 409


async def test_unknown_patch_type_is_refused(api: Api) -> None:
    await api.post(MAPS, config_map())
    answer = await api.patch(f"{MAPS}/a", {}, "surprise")
    assert (answer.code, answer.body["reason"]) == (415, "UnsupportedMediaType")


async def test_dry_run_validates_and_writes_nothing(api: Api) -> None:
    assert (await api.post(PODS, pod(), dryRun="All")).code == 201
    assert (await api.get(f"{PODS}/a")).code == 404
    assert (await api.post(PODS, pod("A"), dryRun="All")).code == 422
    await api.post(MAPS, config_map(x="1"))
    dry = await api.patch(f"{MAPS}/a", {"data": {"x": "2"}}, dryRun="All")
    assert dry.body["data"] == {"x": "2"}
    assert (await api.delete(f"{MAPS}/a", dryRun="All")).code == 200
    assert (await api.get(f"{MAPS}/a")).body["data"] == {"x": "1"}
    assert (await api.post(PODS, pod(), dryRun="Some")).code == 400


async def test_delete_answers_with_success_and_the_object_is_gone(api: Api) -> None:
    created = (await api.post(MAPS, config_map())).body
    deleted = await api.delete(f"{MAPS}/a")
    assert deleted.body["status"] == "Success"
    assert deleted.body["details"]["uid"] == created["metadata"]["uid"]
    for verb in ("GET", "DELETE"):
        again = await api.call(verb, f"{MAPS}/a")
        assert (again.code, again.body["reason"]) == (404, "NotFound")


async def test_unbound_pod_goes_at_once(api: Api) -> None:
    await api.post(PODS, pod())
    assert (await api.delete(f"{PODS}/a")).code == 200
    assert (await api.get(f"{PODS}/a")).code == 404


async def test_bound_pod_waits_for_its_node(api: Api) -> None:
    await api.post(PODS, pod(nodeName="node1", terminationGracePeriodSeconds=7))
    marked = (await api.delete(f"{PODS}/a")).body["metadata"]
    assert marked["deletionGracePeriodSeconds"] == 7
    assert datetime.fromisoformat(marked["deletionTimestamp"]) > datetime.fromisoformat(
        marked["creationTimestamp"]
    )
    assert (await api.get(f"{PODS}/a")).body["metadata"] == marked
    # Asking again changes nothing, asking for less time does, none at all ends it.
    assert (await api.delete(f"{PODS}/a")).body["metadata"] == marked
    shorter = (await api.delete(f"{PODS}/a", {"gracePeriodSeconds": 2})).body["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 2
    assert shorter["deletionTimestamp"] < marked["deletionTimestamp"]
    assert (await api.delete(f"{PODS}/a", gracePeriodSeconds=0)).code == 200
    assert (await api.get(f"{PODS}/a")).code == 404


async def test_finished_pod_goes_at_once(api: Api) -> None:
    await api.post(PODS, pod(nodeName="node1"))
    await api.patch(f"{PODS}/a/status", {"status": {"phase": "Succeeded"}})
    await api.delete(f"{PODS}/a")
    assert (await api.get(f"{PODS}/a")).code == 404


async def test_finalizers_hold_a_deleted_object(api: Api) -> None:
    manifest = config_map()
    manifest["metadata"]["finalizers"] = ["example.com/hold"]
    await api.post(MAPS, manifest)
    held = await api.delete(f"{MAPS}/a")
    assert "deletionTimestamp" in held.body["metadata"]
    more = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    assert (await api.patch(f"{MAPS}/a", more)).code == 422
    await api.patch(f"{MAPS}/a", {"metadata": {"finalizers": None}})
    assert (await api.get(f"{MAPS}/a")).code == 404


async def test_delete_preconditions(api: Api) -> None:
    created = (await api.post(MAPS, config_map())).body["metadata"]
    wrong = await api.delete(f"{MAPS}/a", {"preconditions": {"uid": "another"}})
    assert wrong.code == 409
    right = {"uid": created["uid"], "resourceVersion": created["resourceVersion"]}
    assert (await api.delete(f"{MAPS}/a", {"preconditions": right})).code == 200


async def test_delete_collection_takes_what_is_selected(api: Api) -> None:
    for name in "abc":
        manifest = config_map(name)
        manifest["metadata"]["labels"] = {"keep": str(name == "b").lower()}
        await api.post(MAPS, manifest)
    deleted = await api.delete(MAPS, labelSelector="keep=false")
    assert [item["metadata"]["name"] for item in deleted.body["items"]] == ["a", "c"]
    left = (await api.get(MAPS)).body["items"]
    assert [item["metadata"]["name"] for item in left] == ["b"]
    assert (await api.delete("configmaps")).code == 405


async def test_binding_puts_a_pod_on_a_node_once(api: Api) -> None:
    await api.post(PODS, pod())
    binding = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "node1"}}
    assert (await api.post(f"{PODS}/a/binding", binding)).code == 201
    bound = (await api.get(f"{PODS}/a")).body
    assert bound["spec"]["nodeName"] == "node1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    assert (await api.post(f"{PODS}/a/binding", binding)).code == 409


async def test_objects_need_their_namespace(api: Api) -> None:
    answer = await api.post("namespaces/nowhere/pods", pod())
    assert (answer.code, answer.body["details"]["kind"]) == (404, "namespaces")
    wrong = pod()
    wrong["metadata"]["namespace"] = "other"
    assert (await api.post(PODS, wrong)).code == 400


async def test_builtin_namespaces_exist_and_stay(api: Api) -> None:
    for name in ("default", "kube-system", "kube-node-lease"):
        assert (await api.get(f"namespaces/{name}")).body["status"]["phase"] == "Active"
        assert (await api.delete(f"namespaces/{name}")).code == 403


async def test_deleted_namespace_takes_nothing_new(api: Api) -> None:
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    await api.post("namespaces", manifest)
    assert (await api.delete("namespaces/team")).body["status"]["phase"] == "Terminating"
    refused = await api.post("namespaces/team/pods", pod())
    assert (refused.code, refused.body["reason"]) == (403, "Forbidden")
    finalized = {**manifest, "spec": {"finalizers": []}}
    assert (await api.put("namespaces/team/finalize", finalized)).code == 200
    assert (await api.get("namespaces/team")).code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PODS, {**pod(), "kind": "Node"}),
        (PODS, {**pod(), "apiVersion": "v2"}),
        (PODS, {"metadata": {"name": "a"}}),
        (PODS, []),
        (PODS, b"{"),
        (PODS, b""),
        (PODS, b"\xff"),
        (PODS, b"[" * 100_000),
    ],
)
async def test_bodies_that_are_no_such_object(api: Api, path: str, body: Any) -> None:
    answer = await api.post(path, body)
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")


async def test_body_limit(api: Api) -> None:
    answer = await api.post(MAPS, config_map(x="x" * (3 * 1024 * 1024)))
    assert (answer.code, answer.body["reason"]) == (413, "RequestEntityTooLarge")


async def test_yaml_bodies(api: Api) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {when: 2020-01-01, 1: x}\n"
    refused = await api.call("POST", MAPS, text, kind="application/yaml")
    assert refused.code == 201, refused.body
    assert refused.body["data"] == {"when": "2020-01-01", "1": "x"}
    bomb = b"a: &a [x, x]\nb: [*a, *a]\n"
    refused = await api.call("POST", MAPS, bomb, kind="application/yaml")
    assert (refused.code, "aliases" in refused.body["message"]) == (400, True)
    refused = await api.call("POST", MAPS, b"[" * 100_000, kind="application/yaml")
    assert (refused.code, "too deeply" in refused.body["message"]) == (400, True)


@pytest.mark.parametrize(
    "path",
    ["secrets", "/apis/apps/v1/deployments", "/api/v2/pods", "/nope", "pods/a", "nodes/a/log"],
)
async def test_unknown_paths(api: Api, path: str) -> None:
    answer = await api.get(path)
    assert (answer.code, answer.body["kind"]) == (404, "Status")


@pytest.mark.parametrize(
    ("verb", "path"), [("POST", "pods"), ("PUT", PODS), ("PATCH", PODS), ("POST", f"{PODS}/a")]
)
async def test_verbs_that_a_path_does_not_take(api: Api, verb: str, path: str) -> None:
    assert (await api.call(verb, path, pod())).code == 405
