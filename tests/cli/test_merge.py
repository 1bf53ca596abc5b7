"""The three-way merge of `apply`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.cli.merge import merge_patch, same, three_way, without_nulls

leaves = st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2)
values = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("abc", max_size=1), below),
    max_leaves=8,
)
names = st.sampled_from(["metadata", "spec", "containers", "ports", "env", "x"])
objects = st.dictionaries(names, values, max_size=4)
containers = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("abcd")}, optional={"image": st.text("xy"), "env": values}
    ),
    unique_by=lambda item: str(item["name"]),
    max_size=3,
)
pods = st.fixed_dictionaries({}, optional={"containers": containers, "nodeName": st.text("ab")})


def patched(target: Any, patch: Any) -> Any:
    """RFC 7386, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


@given(objects, objects)
def test_the_patch_leads_from_current_to_wanted(current: Any, wanted: Any) -> None:
    assert same(patched(current, merge_patch(current, wanted)), wanted)


@given(objects)
def test_what_is_equal_needs_no_patch(value: Any) -> None:
    assert merge_patch(value, value) == {}


@given(objects | pods, objects | pods, objects | pods)
def test_applying_twice_changes_nothing(original: Any, modified: Any, current: Any) -> None:
    once = three_way(original, modified, current)
    assert same(three_way(modified, modified, once), once)


@given(objects, objects)
def test_the_first_apply_makes_the_manifest(modified: Any, original: Any) -> None:
    assert three_way({}, modified, {}) == modified
    assert three_way(original, modified, original) == {
        **modified,
        **{
            k: three_way({"k": original[k]}, {"k": modified[k]}, {"k": original[k]})["k"]
            for k in modified
            if k in original
        },
    }


@given(objects, objects)
def test_what_nobody_applied_is_left_alone(modified: Any, current: Any) -> None:
    wanted = three_way({}, modified, current)
    for key, value in current.items():
        if key not in modified:
            assert same(wanted[key], value)


def test_a_field_taken_out_of_the_manifest_is_removed() -> None:
    wanted = three_way(
        {"data": {"a": "1", "b": "2"}},
        {"data": {"a": "1"}},
        {"data": {"a": "1", "b": "2", "theirs": "3"}},
    )
    assert wanted == {"data": {"a": "1", "theirs": "3"}}


def test_what_the_server_added_to_a_container_stays() -> None:
    manifest = {"spec": {"containers": [{"name": "main", "image": "one"}]}}
    token = {"name": "token", "mountPath": "/var/run/secrets"}
    current = {
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "one",
                    "imagePullPolicy": "Always",
                    "volumeMounts": [token],
                }
            ],
            "nodeName": "n1",
        }
    }
    assert merge_patch(current, three_way(manifest, manifest, current)) == {}
    changed = {"spec": {"containers": [{"name": "main", "image": "two"}]}}
    wanted = three_way(manifest, changed, current)
    assert wanted["spec"]["containers"] == [
        {"name": "main", "image": "two", "imagePullPolicy": "Always", "volumeMounts": [token]}
    ]
    assert wanted["spec"]["nodeName"] == "n1"


def test_items_that_others_added_stay_and_ours_go() -> None:
    def pod(*names: str) -> dict[str, Any]:
        return {"spec": {"containers": [{"name": name} for name in names]}}

    assert three_way(pod("a", "b"), pod("b", "c"), pod("injected", "a", "b")) == pod(
        "b", "c", "injected"
    )


def test_lists_without_a_key_are_replaced() -> None:
    wanted = three_way({}, {"command": ["b"]}, {"command": ["a", "b"]})
    assert wanted == {"command": ["b"]}
    endpoint_slice = three_way({}, {"ports": [{"port": 2}]}, {"ports": [{"port": 1}]})
    assert endpoint_slice == {"ports": [{"port": 2}]}


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [(1, 1.0, True), (True, 1, False), ([0], [False], False), ({"a": 1}, {"a": 1}, True)],
)
def test_equality_is_jsons(left: Any, right: Any, equal: bool) -> None:
    assert same(left, right) is equal


def test_null_in_a_manifest_is_nothing() -> None:
    assert without_nulls({"a": None, "b": [{"c": None}], "d": {"e": None}}) == {"b": [{}], "d": {}}
