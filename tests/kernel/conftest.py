"""A reconciler in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podwire.kernel.reconcile import Reconciler
from tests.conftest import Namespace
from tests.kernel.entries import DESIRED, UNDERLAY


@pytest.fixture
def reconciler(inside: Namespace) -> Iterator[Reconciler]:
    """Of a Flannel node with two peers; nothing is applied yet."""
    inside.run(UNDERLAY)
    one = Reconciler()
    one.replace(DESIRED)
    yield one
    one.close()
