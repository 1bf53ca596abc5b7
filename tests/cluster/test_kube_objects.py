"""Decoding lists, events and failures; paths of objects."""

from __future__ import annotations

import msgspec
import pytest

from podwire.cluster.kube import LEASES, NODES, PODS, Bookmark, WatchEvent
from podwire.cluster.kube.objects import decode, decode_event, decode_page
from podwire.cluster.kube.resources import find_by_word
from podwire.cluster.kube.status import error_from_body
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ApiUnavailableError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InputError,
    InvalidError,
    NotFoundError,
)


class Meta(msgspec.Struct, rename="camel"):
    name: str


class Spec(msgspec.Struct, rename="camel"):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")


class SmallNode(msgspec.Struct):
    metadata: Meta
    spec: Spec = msgspec.field(default_factory=Spec)


def page(*items: object, kind: str = "NodeList") -> bytes:
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"resourceVersion": "7", "continue": "next"},
            "items": list(items),
        }
    )


def event(kind: str, obj: object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": obj})


def node(name: str, **spec: object) -> dict[str, object]:
    return {
        "kind": "Node",
        "metadata": {"name": name, "resourceVersion": "9", "labels": {}},
        "spec": spec,
    }


def test_a_page_is_decoded_into_the_wanted_fields() -> None:
    got = decode_page(page(node("a", podCIDR="10.244.1.0/24"), node("b")), SmallNode)
    assert got.items == [
        SmallNode(Meta("a"), Spec("10.244.1.0/24")),
        SmallNode(Meta("b"), Spec("")),
    ]
    assert (got.metadata.resource_version, got.metadata.continue_) == ("7", "next")


def test_dict_items_get_the_kind_of_their_list() -> None:
    got = decode_page(page({"metadata": {"name": "a"}}), dict)
    assert got.items == [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}]


def test_a_list_of_null_is_empty() -> None:
    body = b'{"kind":"NodeList","apiVersion":"v1","metadata":{},"items":null}'
    assert decode_page(body, dict).items == []


def test_a_misfit_is_refused_with_name_and_field() -> None:
    body = page(node("a"), node("b", podCIDR=5))
    with pytest.raises(InputError) as caught:
        decode_page(body, SmallNode)
    assert caught.value.field == "spec.podCIDR"
    assert "Node b" in caught.value.message


def test_a_misfit_can_be_left_out() -> None:
    refused: list[InputError] = []
    got = decode_page(page(node("a"), node("b", podCIDR=5)), SmallNode, refused.append)
    assert [item.metadata.name for item in got.items or ()] == ["a"]
    assert [error.field for error in refused] == ["spec.podCIDR"]


def test_events() -> None:
    assert decode_event(event("ADDED", node("a")), SmallNode) == WatchEvent(
        "ADDED", SmallNode(Meta("a")), "9"
    )
    bookmark = event("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": "12"}})
    assert decode_event(bookmark, SmallNode) == Bookmark("12")


def test_a_misfit_in_an_event_can_be_left_out() -> None:
    refused: list[InputError] = []
    assert decode_event(event("ADDED", node("a", podCIDR=5)), SmallNode, refused.append) is None
    assert len(refused) == 1


def test_an_error_event_raises_what_it_says() -> None:
    status = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}
    with pytest.raises(GoneError):
        decode_event(event("ERROR", status), dict)


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"type":"WHAT","object":{}}'])
def test_a_garbled_event_counts_as_a_lost_connection(line: bytes) -> None:
    with pytest.raises(ApiUnavailableError):
        decode_event(line, dict)


def test_no_json_is_no_object() -> None:
    with pytest.raises(ApiUnavailableError):
        decode(b"<html>", dict)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (401, "Unauthorized", ForbiddenError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "Conflict", ConflictError),
        (409, "AlreadyExists", AlreadyExistsError),
        (410, "Expired", GoneError),
        (422, "Invalid", InvalidError),
        (500, "InternalError", ApiError),
    ],
)
def test_failures_have_types(code: int, reason: str, kind: type[ApiError]) -> None:
    body = {
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": "no",
        "details": {"causes": [{"field": "spec.x"}]},
    }
    error = error_from_body(code, msgspec.json.encode(body))
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (code, reason, "no")
    assert error.details["causes"][0]["field"] == "spec.x"


def test_a_proxys_error_page_is_quoted() -> None:
    error = error_from_body(502, b"<h1>Bad\n Gateway</h1>")
    assert (error.status, error.message) == (502, "<h1>Bad Gateway</h1>")
    assert error_from_body(503, b"").reason == "ServiceUnavailable"


def test_paths() -> None:
    assert NODES.path(None, "n1", "status") == "/api/v1/nodes/n1/status"
    assert NODES.path("ignored") == "/api/v1/nodes"
    assert PODS.path(None) == "/api/v1/pods"
    assert PODS.path("a", "b") == "/api/v1/namespaces/a/pods/b"
    assert LEASES.path("a") == "/apis/coordination.k8s.io/v1/namespaces/a/leases"
    assert PODS.path("a", "x?y#z") == "/api/v1/namespaces/a/pods/x%3Fy%23z"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "%2e%2e"])
def test_a_name_cannot_leave_its_place(name: str) -> None:
    with pytest.raises(InputError):
        PODS.path("default", name)
    with pytest.raises(InputError):
        PODS.path(name, "a")


def test_words_for_kinds() -> None:
    for word in ("po", "pod", "pods", "Pod"):
        assert find_by_word(word) is PODS
    assert find_by_word("leases.coordination.k8s.io") is LEASES
    assert find_by_word("nothing") is None
