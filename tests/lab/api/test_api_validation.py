"""What is wrong with a manifest is told whole: every field, by its path, with what was expected."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podwire.lab.api.kinds import KINDS
from podwire.lab.api.schema import Causes
from tests.lab.api.conftest import Api, config_map, node, pod

PODS = "namespaces/default/pods"
MAIN = {"name": "main", "command": ["true"]}
REQUIRED, INVALID, TYPE = "FieldValueRequired", "FieldValueInvalid", "FieldValueTypeInvalid"
UNSUPPORTED, DUPLICATE = "FieldValueNotSupported", "FieldValueDuplicate"


async def test_all_faults_are_told_at_once_and_in_words(api: Api) -> None:
    manifest = pod("Web", restartPolicy="Sometimes", containers=[{"name": "a_b"}, {"image": "x"}])
    answer = await api.post(PODS, manifest)
    assert answer.causes() == {
        "metadata.name": INVALID,
        "spec.containers[0].name": INVALID,
        "spec.containers[0].command": REQUIRED,
        "spec.containers[1].name": REQUIRED,
        "spec.restartPolicy": UNSUPPORTED,
    }
    assert answer.body["message"].startswith('Pod "Web" is invalid: [metadata.name: Invalid value')
    assert 'supported values: "Always", "OnFailure", "Never"' in answer.body["message"]
    assert answer.body["details"]["kind"] == "Pod"


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"containers": []}, "spec.containers", REQUIRED),
        ({"containers": None}, "spec.containers", REQUIRED),
        ({"containers": "x"}, "spec.containers", TYPE),
        ({"containers": [None]}, "spec.containers[0]", REQUIRED),
        ({"containers": [MAIN, MAIN]}, "spec.containers[1].name", DUPLICATE),
        ({"initContainers": [MAIN]}, "spec.containers[0].name", DUPLICATE),
        ({"containers": [{**MAIN, "command": "true"}]}, "spec.containers[0].command", TYPE),
        ({"containers": [{**MAIN, "args": [1]}]}, "spec.containers[0].args[0]", TYPE),
        (
            {"containers": [{**MAIN, "env": [{"value": "x"}]}]},
            "spec.containers[0].env[0].name",
            REQUIRED,
        ),
        (
            {"containers": [{**MAIN, "ports": [{"containerPort": 70000}]}]},
            "spec.containers[0].ports[0].containerPort",
            INVALID,
        ),
        (
            {"containers": [{**MAIN, "ports": [{"containerPort": 1, "protocol": "ICMP"}]}]},
            "spec.containers[0].ports[0].protocol",
            UNSUPPORTED,
        ),
        (
            {"containers": [{**MAIN, "resources": {"limits": {"cpu": "lots"}}}]},
            "spec.containers[0].resources.limits.cpu",
            INVALID,
        ),
        (
            {"containers": [{**MAIN, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            "spec.containers[0].volumeMounts[0].name",
            "FieldValueNotFound",
        ),
        ({"nodeName": "Node_1"}, "spec.nodeName", INVALID),
        ({"hostname": "a.b"}, "spec.hostname", INVALID),
        ({"hostNetwork": "yes"}, "spec.hostNetwork", TYPE),
        ({"terminationGracePeriodSeconds": "5"}, "spec.terminationGracePeriodSeconds", TYPE),
        ({"activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", INVALID),
        ({"hostAliases": [{"ip": "1.2.3"}]}, "spec.hostAliases[0].ip", INVALID),
        ({"dnsPolicy": "None"}, "spec.dnsConfig.nameservers", REQUIRED),
        ({"nodeSelector": {"a b": "x"}}, "spec.nodeSelector", INVALID),
        ({"tolerations": [{"operator": "Equal"}]}, "spec.tolerations[0].operator", INVALID),
    ],
)
async def test_pod_specs(api: Api, spec: dict[str, Any], field: str, reason: str) -> None:
    manifest = pod()
    manifest["spec"] = {"containers": [MAIN]} | spec
    assert (await api.post(PODS, manifest)).causes() == {field: reason}


@pytest.mark.parametrize(
    ("metadata", "field", "reason"),
    [
        ({}, "metadata.name", REQUIRED),
        ({"name": ""}, "metadata.name", REQUIRED),
        ({"name": 5}, "metadata.name", TYPE),
        ({"name": "x" * 254}, "metadata.name", INVALID),
        ({"name": "-a"}, "metadata.name", INVALID),
        ({"generateName": "A-"}, "metadata.name", INVALID),
        ({"name": "a", "labels": {"a": "b c"}}, "metadata.labels.a", INVALID),
        ({"name": "a", "labels": {"a": 1}}, "metadata.labels.a", TYPE),
        ({"name": "a", "labels": {"/x": ""}}, "metadata.labels", INVALID),
        (
            {"name": "a", "annotations": {"a": "x" * 2**18}},
            "metadata.annotations",
            "FieldValueTooLong",
        ),
        ({"name": "a", "finalizers": ["a b"]}, "metadata.finalizers[0]", INVALID),
        ({"name": "a", "ownerReferences": [{}]}, "metadata.ownerReferences[0].uid", REQUIRED),
    ],
)
async def test_metadata(api: Api, metadata: dict[str, Any], field: str, reason: str) -> None:
    answer = await api.post("namespaces/default/configmaps", {**config_map(), "metadata": metadata})
    assert answer.causes()[field] == reason


async def test_metadata_must_be_an_object(api: Api) -> None:
    answer = await api.post(PODS, {**pod(), "metadata": "x"})
    assert answer.causes() == {"metadata": TYPE}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"podCIDR": "10.244.1.1/24"}, "spec.podCIDR"),
        ({"podCIDR": "10.244.1.0"}, "spec.podCIDR"),
        ({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.2.0/24"]}, "spec.podCIDRs[0]"),
        ({"podCIDRs": ["10.244.1.0/24", "10.244.2.0/24"]}, "spec.podCIDRs"),
    ],
)
async def test_node_specs(api: Api, spec: dict[str, Any], field: str) -> None:
    assert (await api.post("nodes", {**node(), "spec": spec})).causes() == {field: INVALID}


async def test_pod_cidr_is_set_once(api: Api) -> None:
    await api.post("nodes", node())
    set_ = await api.patch("nodes/node1", {"spec": {"podCIDR": "10.1.0.0/24"}})
    assert set_.code == 200
    changed = await api.patch("nodes/node1", {"spec": {"podCIDR": "10.2.0.0/24"}})
    assert changed.causes() == {"spec.podCIDR": "FieldValueForbidden"}
    removed = await api.patch("nodes/node1", {"spec": None})
    assert "spec.podCIDR" in removed.causes()


async def test_pod_spec_is_fixed_but_for_little(api: Api) -> None:
    await api.post(PODS, pod())
    image = {"spec": {"containers": [{"name": "main", "image": "busybox"}]}}
    assert (await api.patch(f"{PODS}/a", image, "strategic-merge-patch")).code == 200
    assert (await api.patch(f"{PODS}/a", {"spec": {"activeDeadlineSeconds": 5}})).code == 200
    changed = await api.patch(f"{PODS}/a", {"spec": {"nodeName": "node1"}})
    assert changed.causes() == {"spec": "FieldValueForbidden"}
    assert "changed: nodeName" in changed.body["message"]


async def test_immutable_config_map(api: Api) -> None:
    path = "namespaces/default/configmaps"
    await api.post(path, {**config_map(x="1"), "immutable": True})
    for patch in ({"data": {"x": "2"}}, {"immutable": False}):
        assert "FieldValueForbidden" in (await api.patch(f"{path}/a", patch)).causes().values()


@pytest.mark.parametrize(
    ("status", "field", "reason"),
    [
        ({"phase": "Sleeping"}, "status.phase", UNSUPPORTED),
        ({"podIP": "10.0.0"}, "status.podIP", INVALID),
        ({"podIPs": [{"ip": "::1"}, {"ip": "::1"}]}, "status.podIPs[1].ip", DUPLICATE),
        (
            {"conditions": [{"type": "Ready", "status": "yes"}]},
            "status.conditions[0].status",
            UNSUPPORTED,
        ),
        (
            {"conditions": [{"type": "A", "status": "True"}] * 2},
            "status.conditions[1].type",
            DUPLICATE,
        ),
        ({"startTime": "yesterday"}, "status.startTime", INVALID),
    ],
)
async def test_pod_status(api: Api, status: dict[str, Any], field: str, reason: str) -> None:
    await api.post(PODS, pod())
    answer = await api.patch(f"{PODS}/a/status", {"status": status})
    assert answer.causes() == {field: reason}


async def test_event_is_in_its_objects_namespace(api: Api) -> None:
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "a.1"},
        "involvedObject": {"kind": "Pod", "name": "a", "namespace": "other"},
    }
    answer = await api.post("namespaces/default/events", event)
    assert answer.causes() == {"involvedObject.namespace": INVALID}


async def test_unknown_fields_are_kept(api: Api) -> None:
    manifest = pod(affinity={"podAffinity": {}}, somethingNew=[1, {"a": None}])
    assert (await api.post(PODS, manifest)).body["spec"]["somethingNew"] == [1, {"a": None}]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, item in items:
        here = (*path, key)
        found += _paths(item, here) if isinstance(item, dict | list) else [here]
    return found


FULL_POD = pod(
    nodeName="node1",
    volumes=[{"name": "v"}],
    tolerations=[{"operator": "Exists"}],
    hostAliases=[{"ip": "::1", "hostnames": ["a"]}],
    dnsConfig={"nameservers": ["1.1.1.1"]},
    initContainers=[
        {
            "name": "init",
            "image": "x",
            "env": [{"name": "A", "value": "b"}],
            "ports": [{"containerPort": 80, "hostPort": 80, "name": "http"}],
            "resources": {"limits": {"cpu": 1}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }
    ],
)
FULL_POD["metadata"] |= {"labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["a/b"]}
FULL_POD["spec"]["readinessGates"] = [{"conditionType": "a/b"}]
_TERMINATED = {"exitCode": 1, "reason": "Error", "finishedAt": "2020-01-01T00:00:00Z"}
FULL_POD["status"] = {
    "phase": "Running",
    "reason": "x",
    "podIP": "10.0.0.1",
    "podIPs": [{"ip": "10.0.0.1"}],
    "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    ],
    "initContainerStatuses": [{"name": "init", "state": {"terminated": _TERMINATED}}],
    "containerStatuses": [
        {
            "name": "main",
            "ready": True,
            "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": _TERMINATED},
        }
    ],
}
FULL_NODE = node(labels={"a": "b"}) | {
    "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "taints": [{"key": "a"}]}
}
FULL_EVENT = {
    "metadata": {"name": "a"},
    "involvedObject": {"namespace": "default"},
    "series": {"lastObservedTime": "2020-01-01T00:00:00Z"},
    "source": {"component": "x"},
}
FULL_POOL = {
    "metadata": {"name": "a"},
    "spec": {
        "cidr": "10.0.0.0/16",
        "blockSize": 26,
        "disabled": True,
        "nodeSelector": "zone == 'a' && has(b)",
    },
}
FULL_BLOCK = {
    "metadata": {"name": "10-0-0-0-26"},
    "spec": {
        "cidr": "10.0.0.0/26",
        "node": "n",
        "used": 1,
        "allocations": [{"ip": "10.0.0.1", "node": "n", "pod": "default/a"}],
    },
}
FULL_RANGE = {
    "metadata": {"name": "10-0-0-0"},
    "spec": {"network": "10.0.0.0/12", "first": "10.0.0.0", "node": "n", "askedBy": ["m"]},
}
_BY_KIND = {kind.kind: kind for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "manifest"),
    [
        ("Pod", FULL_POD),
        ("Node", FULL_NODE),
        ("Event", FULL_EVENT),
        ("ConfigMap", config_map(x="1")),
        ("IPPool", FULL_POOL),
        ("IPAMBlock", FULL_BLOCK),
        ("IPAMRange", FULL_RANGE),
    ],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_no_json_makes_validation_fail(kind: str, manifest: Any, data: st.DataObject) -> None:
    """Whatever stands anywhere in a manifest is either right or a cause, never an exception."""
    broken = copy.deepcopy(manifest)
    if _BY_KIND[kind].namespaced:
        broken["metadata"]["namespace"] = "default"
    path = data.draw(st.sampled_from(_paths(broken)))
    parent = broken
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = data.draw(_json)
    causes = Causes()
    schema = _BY_KIND[kind].schema
    schema.check(broken, "", causes)
    if not causes:
        stored = schema.normalise(copy.deepcopy(broken))
        assert schema.normalise(copy.deepcopy(stored)) == stored
        schema.check(stored, "", causes)
        assert not causes.found
        for column in _BY_KIND[kind].columns:
            column.value(stored)
