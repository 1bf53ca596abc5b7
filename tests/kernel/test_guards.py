"""Guards of pods' ports in a real namespace: hung up, replaced, mended and taken down."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from msgspec import structs

from podwire.kernel import bpf, guard_program, guards, netns
from podwire.kernel.attach import attach
from podwire.kernel.attach_check import check
from podwire.kernel.ebpf import Program, Reg
from podwire.kernel.guards import Guards, GuardValue
from podwire.kernel.judge import ROUTE_GROUPS
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Desired, Entry, Link, PortGuard, Veth, Why
from tests.conftest import Namespace

pytestmark = pytest.mark.root

WHY = Why("Pod/default/a", "is tried out")
MAC = bytes.fromhex("0a580af40105")
IPS = (ip_address("10.244.1.5"), ip_address("fd00::5"))
GUARD = PortGuard(dev="veth1", mac=MAC, ips=IPS, frames=True, why=WHY)
LINK = Link(name="veth1", kind=Veth(peer="pod1", peer_mac=MAC), why=WHY)
WIRED = "ip link add veth1 group 7077 type veth peer name pod1 address 0a:58:0a:f4:01:05"
UP = "ip link set veth1 up && ip link set pod1 up"
FOREIGN = "tc filter add dev veth1 ingress pref 7 protocol all u32 match u32 0 0 flowid 1:1"
SHOW = "tc filter show dev veth1 ingress"

IPV4 = bytes.fromhex("4500001c000000004011000000000000000000000000000000000000")


@pytest.fixture
def reconciler(inside: Namespace) -> Iterator[Reconciler]:
    inside.run(f"{WIRED} && {UP}")
    one = Reconciler()
    yield one
    one.close()


def want(reconciler: Reconciler, *entries: Entry) -> None:
    reconciler.replace(Desired({"Attachment/1": (LINK, *entries)}))
    assert reconciler.reconcile().failures == []
    assert reconciler.plan() == []


def packet(source: str) -> bytes:
    return IPV4[:12] + socket.inet_aton(source) + IPV4[16:]


def send(frame: bytes, *, tag: str = "", linear: int | None = None) -> None:
    """Put a frame into the pod's end. `linear`: so much of it lies in one piece in memory."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("pod1", 0))
        whole = b"\xff" * 6 + MAC + bytes.fromhex(tag) + frame
        if linear is None:
            sock.send(whole)
            return
        sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        sock.send(struct.pack("<BBHHHH", 0, 0, linear, 0, 0, 0) + whole)


def test_hung_up_counting_and_taken_down(inside: Namespace, reconciler: Reconciler) -> None:
    want(reconciler, GUARD)
    assert "direct-action" in inside.run(SHOW)
    send(b"\x08\0" + packet("10.244.1.5"))
    send(b"\x08\0" + packet("10.244.1.6"))
    send(b"\x08\0" + packet("10.244.1.5"), tag="81000000")
    send(b"\x08\0" + packet("10.244.1.5"), tag="8100000a")
    send(b"\x88\xcc" + bytes(40))
    inside.run("ip link set pod1 mtu 9000 && ip link set veth1 mtu 9000")
    # A packet whose headers lie elsewhere than its beginning.
    send(b"\x08\0" + packet("10.244.1.5") + bytes(6000), linear=14)
    send(b"\x08\0" + packet("10.244.1.7") + bytes(6000), linear=14)
    counts = reconciler.guards.counts()
    assert counts == {**dict.fromkeys(counts, 0), "spoofed_ip": 2, "other_frames": 3}
    want(reconciler)
    assert inside.run(SHOW) == ""
    assert "ingress" not in inside.run("tc qdisc show dev veth1")
    assert reconciler.guards.counts() == counts


def test_a_routed_pods_frames_are_looked_at_for_ip_only(
    inside: Namespace, reconciler: Reconciler
) -> None:
    want(reconciler, structs.replace(GUARD, frames=False))
    send(b"\x88\xcc" + bytes(40))
    send(b"\x08\0" + packet("10.244.1.5"), tag="81000000")
    send(b"\x08\0" + packet("10.244.1.6"), tag="81000000")
    # The stack takes both away, and would see the packet in it.
    send(b"\x08\0" + packet("10.244.1.6"), tag="8100000081000000")
    counts = reconciler.guards.counts()
    assert counts == {**dict.fromkeys(counts, 0), "spoofed_ip": 1, "other_frames": 1}


def test_replaced_and_mended_beside_what_others_hang_there(
    inside: Namespace, reconciler: Reconciler
) -> None:
    want(reconciler, GUARD)
    inside.run(FOREIGN)
    other = structs.replace(GUARD, ips=(ip_address("10.244.1.9"),))
    report = reconciler.update("Attachment/1", (LINK, other))
    assert report is not None and report.changes == 1
    assert "10.244.1.9" in inside.run(SHOW)
    with NetlinkSocket(groups=ROUTE_GROUPS) as notified:
        for broken in (
            f"tc filter del dev veth1 ingress pref {guards.PREFERENCE}",
            "tc qdisc del dev veth1 ingress",
        ):
            notified.notifications()
            inside.run(broken)
            assert reconciler.any_amiss(notified.notifications())
            (change,) = reconciler.plan()
            assert change.line == (
                "# tc filter replace dev veth1 ingress pref 1 handle 0x7077 bpf direct-action:"
                " passes 10.244.1.9"
            )
            assert reconciler.reconcile(record=True).lines[0].why == WHY
            assert not reconciler.any_amiss(notified.notifications())
    inside.run(FOREIGN)
    want(reconciler)
    assert "u32" in inside.run(SHOW) and "bpf" not in inside.run(SHOW)


def test_one_who_starts_anew_changes_nothing_and_counts_on(
    inside: Namespace, reconciler: Reconciler
) -> None:
    want(reconciler, GUARD)
    send(b"\x08\0" + packet("10.244.1.6"))
    before = inside.run(SHOW)
    another = Reconciler()
    try:
        another.replace(Desired({"Attachment/1": (LINK, GUARD)}))
        assert another.reconcile().changes == 0
        assert inside.run(SHOW) == before
        assert another.guards.counts()["spoofed_ip"] == 1
        want(another, structs.replace(GUARD, ips=IPS[:1]))
        send(b"\x08\0" + packet("10.244.1.6"))
        assert reconciler.guards.counts()["spoofed_ip"] == 2
    finally:
        another.close()


def test_beside_somebody_elses_clsact(inside: Namespace, reconciler: Reconciler) -> None:
    inside.run("tc qdisc add dev veth1 clsact")
    want(reconciler, GUARD)
    send(b"\x08\0" + packet("10.244.1.6"))
    assert reconciler.guards.counts()["spoofed_ip"] == 1
    want(reconciler)
    assert "clsact" in inside.run("tc qdisc show dev veth1")


def test_attached_with_the_interface(
    inside: Namespace, make_namespace: Callable[[], Namespace]
) -> None:
    pod = make_namespace()
    fd = netns.open_netns(pod.path)
    host = (structs.replace(LINK, kind=Veth(peer="eth0", peer_mac=MAC), alias="podwire pod"), GUARD)
    with NetlinkSocket() as sock, Guards() as ports:
        attach(sock, host, (), fd, ports)
        assert check(sock, host, (), fd) == []
        index = socket.if_nametoindex("veth1")
        found = guards.guard_at(sock, index)
        assert found is not None
        assert guards.value_of(found.name) == GuardValue(True, MAC, IPS)
        assert ports.remove(sock, index) is None
        (fault,) = check(sock, host, (), fd)
        assert "no guard" in fault


def test_a_name_says_what_passes() -> None:
    value = GuardValue(False, MAC, IPS)
    assert guards.value_of(guards.name_of(value)) == value
    many = structs.replace(GUARD, ips=tuple(IPS[1] + number for number in range(40)))
    name = guards.name_of(guards.wire(many))
    assert len(name) < 256
    assert name != guards.name_of(guards.wire(structs.replace(many, ips=many.ips[:39])))
    for strange in ("", "podwire", name, "podwire 1 frames x 10.0.0.1", "podwire 1 frames  10.0.0"):
        assert guards.value_of(strange) is None


def test_what_the_program_knows_is_mended_too(inside: Namespace, reconciler: Reconciler) -> None:
    want(reconciler, GUARD)
    index = socket.if_nametoindex("veth1")
    with NetlinkSocket() as sock:
        found = guards.guard_at(sock, index)
    assert found is not None
    program = bpf.program_by_id(found.program)
    ports = bpf.map_of_program(program, "podwire_ports")
    assert ports is not None
    try:
        right = bpf.read_value(ports, index, guard_program.VALUE_BYTES)
        assert right is not None
        for wrong in (None, bytes(len(right))):
            if wrong is None:
                bpf.delete_hash(ports, index)
            else:
                bpf.write_hash(ports, index, wrong)
            (change,) = reconciler.plan()
            assert change.line.startswith("# tc filter replace dev veth1 ingress")
            assert change.why == WHY
            assert reconciler.reconcile().changes == 1
            assert bpf.read_value(ports, index, len(right)) == right
            assert reconciler.plan() == []
    finally:
        os.close(ports)
        os.close(program)


def test_a_program_of_somebody_else_is_none_of_ours(
    inside: Namespace, reconciler: Reconciler
) -> None:
    want(reconciler, GUARD)
    index = socket.if_nametoindex("veth1")
    code = Program()
    code.mov(Reg.R0, guard_program.PASS)
    code.exit()
    theirs = bpf.load_classifier("podwire_guard", code.assemble(), "GPL")
    try:
        with NetlinkSocket() as sock:
            sock.request(guards._hang(index, theirs, guards.wire(GUARD)))
    finally:
        os.close(theirs)
    assert reconciler.reconcile().changes == 1
    send(b"\x08\0" + packet("10.244.1.6"))
    assert reconciler.guards.counts()["spoofed_ip"] == 1


def test_thousands_of_ports_are_read_at_once() -> None:
    fd = bpf.new_hash("podwire_try", 248, 65536)
    try:
        assert bpf.read_hash(fd, 248) == {}
        for number in range(10_000):
            bpf.write_hash(fd, number, number.to_bytes(248, "little"))
        found = bpf.read_hash(fd, 248)
        assert found == {number: number.to_bytes(248, "little") for number in range(10_000)}
    finally:
        os.close(fd)
