"""Answers that are no answer: never taken for a cluster without nodes."""

from __future__ import annotations

import pytest

from podwire.cluster.kube.objects import decode_page
from podwire.cluster.nodes import NodeObject
from podwire.errors import ApiUnavailableError


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"items":[]}',
        b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}',
        b'{"kind":"Node","metadata":{"name":"node1"}}',
        b"[]",
        b"null",
        b"",
        b"<html>",
    ],
)
def test_what_is_no_list_is_not_an_empty_one(body: bytes) -> None:
    with pytest.raises(ApiUnavailableError):
        decode_page(body, NodeObject)


def test_a_list_of_nobody_is_one() -> None:
    body = b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":null}'
    assert decode_page(body, NodeObject).metadata.resource_version == "7"
