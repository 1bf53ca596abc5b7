"""Labs for the end-to-end tests: one for each module, taken down whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from podwire.lab import Lab, LabPod

from .commands import Command


@pytest.fixture(scope="module")
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs of so many nodes, with random names, and with the options of `Lab`."""
    if os.geteuid() != 0:
        pytest.fail("this test makes a lab: run it as root (sudo script/test)")
    with ExitStack() as labs:
        yield lambda nodes, **options: labs.enter_context(Lab(nodes=nodes, **options))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A lab of three nodes for all tests of the module."""
    return make_lab(3)


@pytest.fixture(scope="module")
def pods(lab: Lab) -> list[LabPod]:
    """A pod on each of the lab's first nodes: pod1 on node1, and so on."""
    made = [lab.run(f"pod{number}", node=node.name) for number, node in enumerate(lab.nodes, 1)]
    lab.wait_ready()
    return made


@pytest.fixture
def command(lab: Lab) -> Command:
    return Command(lab.name)
