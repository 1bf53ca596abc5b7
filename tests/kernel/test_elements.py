"""Elements of open nft sets and counters: kept one by one, through whatever becomes of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from podwire.kernel import nft, nft_elements
from podwire.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from podwire.kernel.nft import NFNLGRP_NFTABLES
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import (
    Desired,
    Entry,
    KeyPart,
    NftChain,
    NftCounter,
    NftElement,
    NftHook,
    NftOpenSet,
    NftRule,
    NftTable,
    Why,
)
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Node/node1", "is tried out")
MAC = bytes.fromhex("0a580af40105")
V4, V6 = ip_address("10.244.1.5"), ip_address("fe80::1")

#: A set of each type and concatenation, and a key for it.
KEYS: dict[str, tuple[KeyPart, ...]] = {
    "ifname": ("veth1",),
    "ether_addr": (MAC,),
    "ipv4_addr": (V4,),
    "ipv6_addr": (V6,),
    "inet_service": (8472,),
    "ifname . ether_addr . ipv4_addr": ("veth1", MAC, V4),
    "ifname . ether_addr . ipv6_addr": ("veth1", MAC, V6),
    "ifname . inet_service . ipv4_addr": ("a-name-of-15-ch", 80, V4),
    "ifname . @th,64,128": ("veth1", V6),
}
SETS = {f"s{number}": kind for number, kind in enumerate(KEYS)}
BINDING = "ifname . ipv4_addr"


def table(**changes: Any) -> NftTable:
    one = NftTable(
        name="podwire",
        family="bridge",
        why=WHY,
        open_sets=(NftOpenSet(name="bindings", type="ifname . ether_addr . ipv4_addr", why=WHY),),
        counters=(NftCounter(name="spoofed", meaning="is tried out"),),
        chains=(chain('counter name "spoofed"'),),
    )
    return msgspec.structs.replace(one, **changes)


def chain(*texts: str, priority: int = -300, policy: str = "accept") -> NftChain:
    return NftChain(
        name="from_pods",
        hook=NftHook(type="filter", hook="output", priority=priority, policy=policy),
        rules=tuple(NftRule(text=text, why=WHY) for text in texts),
    )


def binding(name: str) -> NftElement:
    return NftElement(set="bindings", key=(name, MAC, V4), family="bridge", why=WHY)


@pytest.fixture
def reconciler(inside: Namespace) -> Iterator[Reconciler]:
    one = Reconciler()
    yield one
    one.close()


def reconcile(reconciler: Reconciler, own: tuple[Entry, ...], *pods: NftElement) -> None:
    causes = {f"Attachment/{number}": (one,) for number, one in enumerate(pods)}
    reconciler.replace(Desired({"Node/node1": own, **causes}))
    assert reconciler.reconcile().failures == []
    assert reconciler.plan() == []


def test_every_type_of_key_is_what_nft_takes_it_for(
    inside: Namespace, reconciler: Reconciler
) -> None:
    elements = tuple(
        NftElement(set=name, key=KEYS[kind], why=WHY, family="inet") for name, kind in SETS.items()
    )
    sets = tuple(NftOpenSet(name=name, type=kind, why=WHY) for name, kind in SETS.items())
    empty = NftTable(name="podwire", why=WHY, open_sets=sets)
    # First through libnftables, with their table, then over netlink.
    reconcile(reconciler, (empty, *elements))
    by_nft = inside.run("nft list table inet podwire")
    for name in SETS:
        inside.run(f"nft flush set inet podwire {name}")
    report = reconciler.reconcile(record=True)
    assert (report.failures, report.changes) == ([], len(SETS))
    assert inside.run("nft list table inet podwire") == by_nft
    for change in report.lines:
        inside.run(change.line)
        inside.run(change.line.replace("nft add", "nft delete"))
    assert len(reconciler.plan()) == len(SETS)
    assert reconciler.reconcile().failures == []
    assert inside.run("nft list table inet podwire") == by_nft


@pytest.mark.parametrize(
    "changed",
    [
        table(chains=(chain('counter name "spoofed"', "iifname != @guarded accept"),)),
        table(chains=(chain('counter name "spoofed"', priority=-200),)),
        table(chains=(chain('counter name "spoofed"', policy="drop"),)),
        table(chains=(chain('counter name "spoofed"'), NftChain(name="more", rules=()))),
        table(chains=()),
    ],
    ids=["a rule more", "another hook", "another policy", "a chain more", "no chain"],
)
def test_elements_and_counts_stay_when_the_rest_changes(
    inside: Namespace, reconciler: Reconciler, changed: NftTable
) -> None:
    guarded = NftOpenSet(name="guarded", type="ifname", why=WHY)
    inside.run(
        "ip link add br0 type bridge; ip link set br0 up; ip address add 10.0.0.1/24 dev br0"
    )
    inside.run("ip link add p type veth peer name q; ip link set p master br0 up; ip link set q up")
    reconcile(reconciler, (table(),), binding("veth1"))
    inside.run("ping -c1 -W0.01 10.0.0.9", check=False)
    packets, octets = reconciler.counters()["bridge", "podwire", "spoofed"]
    assert packets >= 1
    assert octets >= 28
    with NetlinkSocket(NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,)) as watch:
        reconcile(
            reconciler,
            (msgspec.structs.replace(changed, open_sets=(*changed.open_sets, guarded)),),
            binding("veth1"),
        )
        notified = watch.notifications()
    assert notified
    assert nft_elements.DELETED_ELEMENTS not in {one.type for one in notified}
    assert not reconciler.any_amiss(notified)
    assert reconciler.counters()["bridge", "podwire", "spoofed"][0] >= packets


def test_a_set_of_another_type_is_filled_at_once(inside: Namespace, reconciler: Reconciler) -> None:
    reconcile(reconciler, (table(),), binding("veth1"))
    other = NftOpenSet(name="bindings", type="ifname", why=WHY)
    element = NftElement(set="bindings", key=("veth1",), family="bridge", why=WHY)
    using = chain("iifname @bindings accept")
    changed = table(open_sets=(other,), chains=(using,), counters=())
    reconciler.replace(Desired({"Node/node1": (changed,), "Attachment/0": (element,)}))
    (change,) = reconciler.plan()
    assert 'elements = { "veth1" }' in change.line
    inside.run(change.line)
    assert reconciler.plan() == []
    assert reconciler.counters() == {}


def test_elements_of_a_cause_come_and_go(inside: Namespace, reconciler: Reconciler) -> None:
    reconcile(reconciler, (table(),), binding("veth1"))
    with NetlinkSocket(NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,)) as watch:
        for entries, changes in (((binding("veth2"),), 1), ((binding("veth3"),), 2), ((), 1)):
            report = reconciler.update("Attachment/7", entries)
            assert report is not None
            assert (report.changes, report.failures) == (changes, [])
            assert not reconciler.any_amiss(watch.notifications())
        inside.run("nft add table inet other; nft add set inet other bindings '{ type ifname; }'")
        inside.run("nft add element inet other bindings '{ \"veth1\" }'")
        assert not reconciler.any_amiss(watch.notifications())
        for disturbance in (
            "nft flush set bridge podwire bindings",
            f"nft add element bridge podwire bindings '{{ \"x\" . {MAC.hex(':')} . 10.0.0.9 }}'",
            "nft add counter bridge podwire more",
            "nft delete table bridge podwire",
            "nft add table ip podwire",
        ):
            inside.run(disturbance)
            assert reconciler.any_amiss(watch.notifications()), disturbance
            assert reconciler.reconcile().failures == []
            assert reconciler.plan() == []
            assert not reconciler.any_amiss(watch.notifications())
    assert "veth1" in inside.run("nft list set bridge podwire bindings")
    assert "veth1" in inside.run("nft list set inet other bindings")


def test_what_a_set_can_not_hold_is_told(inside: Namespace, reconciler: Reconciler) -> None:
    stray = NftElement(set="nowhere", key=("veth1",), why=WHY)
    reconciler.replace(Desired({"Node/node1": (table(),), "Attachment/0": (stray,)}))
    (failure,) = reconciler.reconcile().failures
    assert failure == "Attachment/0: no nft set inet podwire nowhere is planned"
    with pytest.raises(ValueError, match="is not of type ipv4_addr"):
        nft_elements.key_of(NftElement(set="s", key=(V6,), why=WHY), ("ipv4_addr",))


def test_a_refused_element_takes_no_other_with_it(
    inside: Namespace, reconciler: Reconciler
) -> None:
    reconcile(reconciler, (table(),))
    good = nft_elements.untyped_key(binding("veth1"))
    bad = good._replace(set="nowhere")
    absent = nft_elements.untyped_key(binding("veth9"))
    batch = [nft_elements.add(bad), nft_elements.add(good), nft_elements.delete(absent)]
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        refused = nft_elements.transact(sock, batch)
        assert {(one.index, one.errno) for one in refused} == {(0, 2), (2, 2)}
        assert nft_elements.is_there(sock, good)
        assert not nft_elements.is_there(sock, absent)
        assert nft_elements.transact(sock, []) == []
    assert nft.removal("bridge", "podwire").startswith("delete table")
