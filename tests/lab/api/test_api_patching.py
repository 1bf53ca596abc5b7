"""Merge patch, JSON patch and strategic merge patch, as functions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.lab.api.kinds import NODE, POD
from podwire.lab.api.patching import PatchError, json_patch, merge_patch
from podwire.lab.api.schema import ANYTHING
from podwire.lab.api.strategic import strategic_merge

_scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2)
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc~/", max_size=2), inner, max_size=3)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_examples_of_rfc_7386(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(_json, _json)
def test_merge_patch_is_idempotent_and_pure(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert (target, patch) == before


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value


def _difference(old: Any, new: Any) -> Any:
    """The merge patch from `old` to `new`, as RFC 7386 has it possible: without nulls in `new`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch = {name: None for name in old if name not in new}
    for name, value in new.items():
        if name not in old or old[name] != value or isinstance(value, dict):
            patch[name] = _difference(old.get(name), value)
    return patch


@given(_json, _json)
def test_merge_patch_reaches_any_document_without_nulls(old: Any, new: Any) -> None:
    old, new = _without_nulls(old), _without_nulls(new)
    assert merge_patch(old, _difference(old, new)) == new


@given(_json, st.dictionaries(st.text("ab", max_size=2), _scalars, max_size=3))
def test_strategic_merge_without_keyed_lists_is_a_merge_patch(target: Any, patch: Any) -> None:
    assert strategic_merge(target, patch, ANYTHING) == merge_patch(target, patch)


def _pointers(value: Any, path: str = "") -> list[str]:
    found = [path]
    items: Any = []
    if isinstance(value, dict):
        items = [(k.replace("~", "~0").replace("/", "~1"), v) for k, v in value.items()]
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        found += _pointers(item, f"{path}/{key}")
    return found


@given(_json, st.data())
def test_json_patch_replace_then_test(document: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(_pointers(document)))
    value = data.draw(_json)
    before = copy.deepcopy(document)
    operations = [
        {"op": "replace", "path": path, "value": value},
        {"op": "test", "path": path, "value": value},
    ]
    json_patch(document, operations)
    assert document == before


@given(_json, st.data())
def test_json_patch_add_then_remove_comes_back(document: Any, data: st.DataObject) -> None:
    containers = [p for p in _pointers(document) if isinstance(_at(document, p), dict | list)]
    if not containers:
        return
    path = data.draw(st.sampled_from(containers))
    step = "new" if isinstance(_at(document, path), dict) else "0"
    operations = [
        {"op": "add", "path": f"{path}/{step}", "value": 1},
        {"op": "remove", "path": f"{path}/{step}"},
    ]
    assert json_patch(document, operations) == document


def _at(document: Any, path: str) -> Any:
    for step in path.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


@pytest.mark.parametrize(
    "operations",
    [
        {},
        [1],
        [{"op": "add", "path": "/a"}],
        [{"op": "remove", "path": "/nope"}],
        [{"op": "replace", "path": "/list/9", "value": 1}],
        [{"op": "add", "path": "/list/01", "value": 1}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "add", "path": "/text/x", "value": 1}],
        [{"op": "fly", "path": "/a"}],
        [{"op": "move", "from": "/map", "path": "/map/inner"}],
        [{"op": "test", "path": "/one", "value": True}],
    ],
)
def test_json_patch_refusals(operations: Any) -> None:
    document = {"list": [1], "map": {"inner": {}}, "text": "x", "one": 1}
    with pytest.raises(PatchError):
        json_patch(document, operations)


def test_json_patch_moves_and_copies() -> None:
    operations = [
        {"op": "move", "from": "/a", "path": "/b/0"},
        {"op": "copy", "from": "/b/0", "path": "/b/-"},
    ]
    assert json_patch({"a": 1, "b": [2]}, operations) == {"b": [1, 2, 1]}


def conditions(*types: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": type_, "status": "True"} for type_ in types]}}


def test_strategic_merge_by_key() -> None:
    patch = {"status": {"conditions": [{"type": "B", "status": "False"}, {"type": "C"}]}}
    merged = strategic_merge(conditions("A", "B"), patch, NODE.schema)
    assert merged["status"]["conditions"] == [
        {"type": "A", "status": "True"},
        {"type": "B", "status": "False"},
        {"type": "C"},
    ]


def test_strategic_merge_reaches_nested_lists() -> None:
    target = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}}
    patch = {"spec": {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}]}}
    merged = strategic_merge(target, patch, POD.schema)
    assert [env["name"] for env in merged["spec"]["containers"][0]["env"]] == ["X", "Y"]


@pytest.mark.parametrize(
    ("patch", "types"),
    [
        ([{"$patch": "delete", "type": "A"}], ["B"]),
        ([{"$patch": "delete", "type": "Z"}], ["A", "B"]),
        ([{"$patch": "replace"}, {"type": "Z"}], ["Z"]),
        ([], ["A", "B"]),
    ],
)
def test_strategic_merge_list_directives(patch: list[Any], types: list[str]) -> None:
    merged = strategic_merge(conditions("A", "B"), {"status": {"conditions": patch}}, NODE.schema)
    assert [condition["type"] for condition in merged["status"]["conditions"]] == types


def test_strategic_merge_order_and_deletion_of_primitives() -> None:
    target = {"metadata": {"finalizers": ["a", "b", "c"]}}
    patch = {
        "metadata": {
            "$deleteFromPrimitiveList/finalizers": ["b"],
            "finalizers": ["d"],
            "$setElementOrder/finalizers": ["d", "c", "a"],
        }
    }
    merged = strategic_merge(target, patch, NODE.schema)
    assert merged["metadata"] == {"finalizers": ["d", "c", "a"]}


def test_strategic_merge_object_directives() -> None:
    target = {"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"x": 1, "y": 2}}
    replaced = strategic_merge(
        target, {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}, NODE.schema
    )
    assert replaced["metadata"]["labels"] == {"c": "3"}
    deleted = strategic_merge(target, {"spec": {"$patch": "delete"}}, NODE.schema)
    assert deleted["spec"] == {}
    retained = strategic_merge(target, {"spec": {"$retainKeys": ["y", "z"], "z": 3}}, NODE.schema)
    assert retained["spec"] == {"y": 2, "z": 3}


@pytest.mark.parametrize(
    "patch",
    [
        {"status": {"conditions": [{"status": "True"}]}},
        {"status": {"conditions": ["x"]}},
        {"status": {"$patch": "explode"}},
        {"status": {"$retainKeys": "x"}},
        {"status": {"$deleteFromPrimitiveList/conditions": 5}},
        {"status": {"$setElementOrder/conditions": 5}},
    ],
)
def test_strategic_merge_refusals(patch: Any) -> None:
    with pytest.raises(PatchError):
        strategic_merge(conditions("A"), patch, NODE.schema)


@given(_json)
def test_strategic_merge_takes_any_patch_or_refuses(patch: Any) -> None:
    for wrapped in (patch, {"status": patch}, {"status": {"conditions": patch}}):
        try:
            strategic_merge(conditions("A", "B"), wrapped, NODE.schema)
        except PatchError:
            continue
