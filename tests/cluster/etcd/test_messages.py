"""Answers of failure, in both of the shapes that the gateway gives them."""

from __future__ import annotations

import pytest

from podwire.cluster.etcd.messages import failure_in


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":"etcdserver: no leader","code":14,"message":"no leader"}', (14, "no leader")),
        (b'{"error":{"grpc_code":14,"http_code":503,"message":"no leader"}}\n', (14, "no leader")),
        (b"404 page not found", None),
        (b"{}", None),
    ],
)
def test_what_a_failure_says(body: bytes, expected: tuple[int, str] | None) -> None:
    found = failure_in(body)
    assert (found and (found.code, found.message)) == expected
