"""What goes wrong in a lab on purpose: nodes that are cut off from each other, and dead ones.

What lives here: the faults as the lab's record has them, how they are made and healed, and the nft
rules that cut nodes off; pure. What does not: carrying them out (`supervisor`, `underlay`).

The underlay's namespace sees every frame between two nodes, bridged or routed. Where one comes in
it is marked with its node's number, and where it goes out to a node, the pair is looked at:

    node1 ──▶ prerouting: mark 1 ── bridge, perhaps routing ── postrouting: mark 1, to node3? drop
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from podwire.errors import InputError

Protocol: TypeAlias = Literal["udp", "tcp"]

#: Dead processes of the lab that are no nodes.
API, ETCD = "api", "etcd"
ETCD_PORT = 2379

#: The nft table that the rules are in.
TABLE = "bridge faults"


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    """No packet passes between two nodes, either way; `b` is None for all other nodes.

    With a `protocol` it is packets to its `port` only.
    """

    a: str
    b: str | None = None
    protocol: Protocol | None = None
    port: int = 0

    def concerns(self, node: str) -> bool:
        return node in (self.a, self.b)

    def __str__(self) -> str:
        what = f" ({self.protocol} port {self.port})" if self.protocol else ""
        return f"{self.a} from {self.b or 'all other nodes'}{what}"


class Faults(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that is wrong now. `dead` are nodes, `api` and `etcd`; `no_api` nodes without the API."""

    dead: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    no_api: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dead or self.cuts or self.no_api)

    def sentences(self) -> Iterator[str]:
        """What a person is told, one a fault."""
        for name in self.dead:
            yield f"{name} is dead"
        for cut in self.cuts:
            yield f"partition: {cut}"
        for name in self.no_api:
            yield f"partition: {name} from the API"

    def cut(self, a: str, others: Collection[str], protocol: Protocol | None, port: int) -> Faults:
        """With `a` cut off from `others`, none for all other nodes."""
        made = [Cut(min(a, b), max(a, b), protocol, port) for b in others]
        made = made or [Cut(a, None, protocol, port)]
        new = tuple(cut for cut in dict.fromkeys(made) if cut not in self.cuts)
        return msgspec.structs.replace(self, cuts=(*self.cuts, *new))

    def without_api(self, nodes: Iterable[str]) -> Faults:
        """With these nodes cut off from the API."""
        return msgspec.structs.replace(self, no_api=tuple(dict.fromkeys((*self.no_api, *nodes))))

    def killed(self, names: Iterable[str]) -> Faults:
        """With these dead."""
        return msgspec.structs.replace(self, dead=tuple(dict.fromkeys((*self.dead, *names))))

    def healed(self, names: Collection[str]) -> Faults:
        """Without what concerns these nodes."""
        return Faults(
            dead=tuple(name for name in self.dead if name not in names),
            cuts=tuple(cut for cut in self.cuts if not any(map(cut.concerns, names))),
            no_api=tuple(name for name in self.no_api if name not in names),
        )


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raises InputError for a name that is not known."""
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is not one of {', '.join(known)}", field="node")


def ruleset(faults: Faults, indexes: Mapping[str, int], store_port: int | None) -> str:
    """What to give nft(8) in the underlay's namespace; `indexes` are the nodes' by name.

    `store_port` is the TCP port that nodes without the API may not use either. Empty where there is
    nothing to cut.
    """
    cuts = [cut for cut in faults.cuts if {cut.a, cut.b or cut.a} <= indexes.keys()]
    no_store = [name for name in faults.no_api if name in indexes and store_port]
    if not cuts and not no_store:
        return ""
    marks = [f'iifname "{name}" meta mark set {index}' for name, index in indexes.items()]
    drops = [rule for cut in cuts for rule in _drops(cut, indexes)]
    drops += [f'meta mark 0 oifname "{name}" tcp sport {store_port} drop' for name in no_store]
    refused = [f"meta mark {indexes[name]} tcp dport {store_port} drop" for name in no_store]
    return (
        f"table {TABLE} {{\n"
        + _chain("from", "prerouting", -300, marks)
        + _chain("to", "postrouting", 0, drops)
        + _chain("here", "input", 0, refused)
        + "}\n"
    )


def _drops(cut: Cut, indexes: Mapping[str, int]) -> Iterator[str]:
    what = f" {cut.protocol} dport {cut.port}" if cut.protocol else ""
    a = indexes[cut.a]
    if cut.b is None:
        # Mark 0 is of the router itself.
        yield f'meta mark {a} oifname "node*"{what} drop'
        yield f'meta mark != {{ 0, {a} }} oifname "{cut.a}"{what} drop'
        return
    yield f'meta mark {a} oifname "{cut.b}"{what} drop'
    yield f'meta mark {indexes[cut.b]} oifname "{cut.a}"{what} drop'


def _chain(name: str, hook: str, priority: int, rules: Iterable[str]) -> str:
    lines = [f"type filter hook {hook} priority {priority};", *rules]
    return f"  chain {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"
