"""What is meant by a thing without its kind."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from podwire.cli.main import podwire
from podwire.cli.thing import KINDS, kinds_and_thing
from podwire.errors import InputError
from podwire.trace import explain

_MAC = "6e:3d:4e:35:ad:0b"


def test_the_kinds_are_those_of_the_agent() -> None:
    assert sorted(KINDS) == sorted(explain.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_taken_as_it_is(kind: str) -> None:
    assert kinds_and_thing([kind, "10.0.0.1", "dev", "a"]) == ((kind,), "10.0.0.1 dev a")
    assert kinds_and_thing([f"{kind} pod1"]) == ((kind,), "pod1")


@pytest.mark.parametrize(
    ("thing", "kinds"),
    [
        ("10.244.2.2", ("ip",)),
        ("fd00:10:244::2", ("ip",)),
        ("[fe80::1%eth0]", ("ip",)),
        ("10.244.2.0 dev flannel.1 lladdr 6e:3d:4e:35:ad:0b PERMANENT", ("neigh",)),
        ("10.244.2.0/24", ("route",)),
        ("10.244.2.7/24", ("route",)),
        ("fd00:10:244:2::/64", ("route",)),
        ("10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", ("route",)),
        ("default", ("route",)),
        ("default via 10.244.1.1", ("route",)),
        (_MAC, ("fdb", "neigh", "link")),
        (_MAC.upper().replace(":", "-"), ("fdb", "neigh", "link")),
        (f"{_MAC} dev flannel.1 dst 172.18.0.12", ("fdb", "neigh")),
        ("flannel.1", ("link",)),
        ("eth0@if5:", ("link",)),
        ("dev cni0", ("link",)),
        ("pod1", ("link",)),
    ],
)
def test_a_thing_is_what_it_looks_like(thing: str, kinds: tuple[str, ...]) -> None:
    assert kinds_and_thing(thing.split()) == (kinds, thing)


@pytest.mark.parametrize(
    "thing",
    ["", "rout 10.244.2.0/24", "7", "10.244.2.0/40", "default/pod1", "a-name-of-16-let", "a\x1b"],
)
def test_what_could_be_anything_wants_its_kind(thing: str) -> None:
    with pytest.raises(InputError) as caught:
        kinds_and_thing(thing.split(" "))
    assert caught.value.remedy is not None
    assert "route, neigh, fdb, link, rule or ip" in caught.value.remedy


def test_a_kind_alone_is_not_enough() -> None:
    error = CliRunner().invoke(podwire, ["explain", "rule"]).exception
    assert isinstance(error, InputError)
    assert error.message == "THING: which rule?"
