"""Two nodes with pods in real namespaces, wired by the real planner and reconciler.

    pod a, pod c ─ cni0 ─ node1 ─ flannel.1 ─ eth0 ══ eth0 ─ flannel.1 ─ node2 ─ cni0 ─ pod b

Every pod has an IPv4 and an IPv6 address. Nobody mends by itself what a test breaks: `mend` does.
Each place has a tap, so that a test sees a probe's packets as an agent would.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.attach import attach
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.frames import FrameTap
from podwire.kernel.observe.pcap_filter import compile_for_all
from podwire.kernel.reconcile import Reconciler
from podwire.model.cluster import Attachment, ClusterView, Lease, NetworkConfig, Node, Underlay
from podwire.model.probe import Probe, ProbeMatch
from podwire.model.state import Address
from podwire.plan.macs import mac_for
from podwire.plan.node import cause_of_attachment, plan
from podwire.plan.wiring.bridge import gateway, plan_attachment
from podwire.trace.decide import Decider
from podwire.trace.decode import decode
from podwire.trace.intent import Intent
from podwire.trace.model import Decision, Icmp, Packet, Problem
from podwire.trace.places import Places
from podwire.trace.probe import Prober
from podwire.trace.records import Question
from tests.conftest import Namespace

PODS = {"a": 1, "c": 1, "b": 2}  # the node of each
_HOST = {"a": 2, "c": 3, "b": 2}  # its number in the node's subnets
_PATIENCE_S = 60
_FORGET = ("neigh flush nud failed", "neigh flush nud incomplete")
#: What the taps let through; a probe's own packets are told by its number.
_SEEN = "icmp or icmp6 or udp port 8472"
_NETWORK = (ip_network("10.244.0.0/16"), ip_network("fd00:244::/32"))


def vtep_mac(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number])


def lease(number: int, version: int) -> Lease:
    return Lease(
        subnets=(
            ip_network(f"10.244.{number}.0/24"),
            ip_network(f"fd00:244:{number}::/64"),
        ),
        backend="vxlan",
        public_ip=ip_address(underlay_ip(number, version)),
        vni=1,
        vtep_mac=vtep_mac(number),
    )


def underlay_ip(number: int, version: int = 4) -> str:
    return f"172.18.0.{10 + number}" if version == 4 else f"fd18::{10 + number}"


def pod_ip(name: str, version: int = 4) -> str:
    base = f"10.244.{PODS[name]}." if version == 4 else f"fd00:244:{PODS[name]}::"
    return f"{base}{_HOST[name]}"


def _attachment(name: str, namespace: Namespace, config: NetworkConfig) -> Attachment:
    return Attachment(
        container_id=name * 12,
        ifname="eth0",
        netns=namespace.path,
        host_ifname=f"veth{name}",
        mac=mac_for(ip_address(pod_ip(name))),
        ips=(
            ip_interface(f"{pod_ip(name, 4)}/24"),
            ip_interface(f"{pod_ip(name, 6)}/64"),
        ),
        gateways=tuple(gateway(subnet) for subnet in config.lease.subnets),
        pod=f"default/{name}",
    )


@dataclass(frozen=True)
class Sighting:
    """A packet at an interface: the names are for people and asserts, the numbers for questions."""

    place: int
    ifindex: int
    direction: str
    at: str
    packet: Packet = field(repr=False)


class Network:
    """The whole; `close` takes it away. The underlay is IPv4 or IPv6."""

    def __init__(self, make_namespace: Callable[[], Namespace], version: int = 4) -> None:
        with ExitStack() as stack:
            self._build(stack, make_namespace, version)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _build(
        self, stack: ExitStack, make_namespace: Callable[[], Namespace], version: int
    ) -> None:
        self.nodes = {number: make_namespace() for number in (1, 2)}
        self.pods = {name: make_namespace() for name in PODS}
        for one in (*self.nodes.values(), *self.pods.values()):
            # New addresses are tentative for seconds otherwise (RFC 4862).
            one.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        one, two = self.nodes[1], self.nodes[2]
        one.run(f"ip link add eth0 type veth peer name eth0 netns {two.name}")
        self._fds = {}
        self.reconcilers = {}
        self.configs = {}
        self.attachments: dict[int, list[Attachment]] = {1: [], 2: []}
        members = {f"node{n}": Node(f"node{n}", lease=lease(n, version)) for n in (1, 2)}
        for number, node in self.nodes.items():
            bits = 24 if version == 4 else 64
            own = underlay_ip(number, version)
            node.run(f"ip address add {own}/{bits} dev eth0 {'nodad' if version == 6 else ''}")
            node.run("ip link set eth0 up")
            node.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
            config = NetworkConfig(
                node=f"node{number}",
                network=_NETWORK,
                lease=lease(number, version),
                underlay=Underlay("eth0", ip_address(own), 1500),
                mtu=1450 if version == 4 else 1430,
            )
            self.configs[number] = config
            fd = netns.open_netns(node.path)
            stack.callback(os.close, fd)
            self._fds[number] = fd
            with netns.entered(fd):
                reconciler = Reconciler()
                stack.callback(reconciler.close)
                sock = stack.enter_context(NetlinkSocket())
            self.reconcilers[number] = reconciler
            reconciler.replace(plan(ClusterView(config, members)))
            self.mend(number)
            for name in (name for name, where in PODS.items() if where == number):
                attachment = _attachment(name, self.pods[name], config)
                self.attachments[number].append(attachment)
                wiring = plan_attachment(config, attachment)
                inside = netns.open_netns(attachment.netns)
                stack.callback(os.close, inside)
                with netns.entered(fd):
                    attach(sock, wiring.host, wiring.pod, inside)
                reconciler.note(cause_of_attachment(attachment), wiring.host)
        self._places: dict[int, Places] = {}
        stack.callback(self._close_places)
        self.look()
        program = compile_for_all(_SEEN)
        self._taps = {
            name: stack.enter_context(FrameTap(self._fd(name), program, frames=64))
            for name in self._number
        }

    def look(self) -> None:
        """Open and describe all places, as they are now."""
        self._close_places()
        for number in (1, 2):
            with netns.entered(self._fds[number]):
                there = {one.pod: one.netns for one in self.attachments[number]}
                self._places[number] = Places(f"node{number}", "eth0", there)
        self._number = {
            place.name: (number, index)
            for number, places in self._places.items()
            for index, place in enumerate(places.described)
        }

    def _close_places(self) -> None:
        for places in self._places.values():
            places.close()

    def mend(self, number: int) -> None:
        """What the agent would do."""
        with netns.entered(self._fds[number]):
            report = self.reconcilers[number].reconcile()
        assert report.failures == []

    def run(self, place: str, line: str, *, check: bool = True) -> None:
        """A shell line in a place; without `ip netns exec`, which takes longer than the line."""
        done = self._run(place, ["sh", "-c", line])
        assert not check or done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"

    def _run(
        self, place: str, command: list[str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        with netns.entered(self._fd(place)):
            return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def wire_again(self) -> None:
        """Give the pods again what they were given at first, which no agent does; and forget what
        was asked for in vain."""
        for number, attachments in self.attachments.items():
            for one in attachments:
                lines = [f"link set eth0 up mtu {self.configs[number].mtu}"]
                for entry in plan_attachment(self.configs[number], one).pod:
                    if isinstance(entry, Address):
                        tail = " nodad" if entry.ip.version == 6 else ""
                        lines.append(f"address replace {entry.ip} dev eth0{tail}")
                    else:
                        lines.append(f"route replace {entry.dst} via {entry.via} dev eth0")
                self._batch(f"pod:{one.pod}", [*lines, *_FORGET])
            self._batch(f"node{number}", _FORGET)

    def _batch(self, place: str, lines: Sequence[str]) -> None:
        self._run(place, ["ip", "-force", "-batch", "-"], "\n".join(lines) + "\n")

    def intent(self, number: int) -> Intent:
        return Intent(
            dict(self.reconcilers[number].desired),
            config=self.configs[number],
            attachments=self.attachments[number],
        )

    def decider(self, number: int, *, held: bool = False) -> Decider:
        places = self._places[number]
        sockets = [one.socket for one in places.opened]
        return Decider(places.described, sockets, self.intent(number), held=held)

    # --- probes ---------------------------------------------------------------------------

    def probe(
        self, source: str, target: str, *, size: int | None = None
    ) -> tuple[list[Sighting], ProbeMatch | None]:
        """Send one from a place (`node1`, `pod:default/a`); where the request was seen, in order.

        The match says what was sent, and is None where nothing could be.
        """
        self.look()
        number, index = self._number[source]
        fd = self._places[number].opened[index].fd
        wanted = Probe(target=target, size=size, timeout_s=0.08)
        with ExitStack() as stack:
            try:
                prober = stack.enter_context(Prober(fd, wanted))
            except KernelError:
                return [], None
            match = ProbeMatch(
                protocol="icmp", source=prober.source, target=target, ident=prober.ident
            )
            for tap in self._taps.values():
                tap.read()  # what was before
            prober.fire()
            frames = [
                (name, here, one)
                for name, here in self._number.items()
                for one in self._taps[name].read()
            ]
        found = []
        # Within a tap frames are in order; between them times tell, which never run backwards.
        for name, (node, place), frame in sorted(frames, key=lambda one: one[2].time_ns):
            packet = decode(frame.data, frame.link_type, frame.length)
            if _is_request(packet, prober.ident):
                interface = self._interface(node, place, frame.ifindex)
                direction = "out" if frame.outgoing else "in"
                at = f"{name} {interface} {direction}"
                found.append(Sighting(place, frame.ifindex, direction, at, packet))
        return found, match

    def wait_until_whole(self) -> None:
        """Until the pods reach each other, by both IP versions."""
        deadline = time.monotonic() + _PATIENCE_S
        for target, version in (("b", 4), ("b", 6), ("c", 4), ("c", 6)):
            seen: list[Sighting] = []
            while not (seen and seen[-1].at.startswith(f"pod:default/{target}")):
                assert time.monotonic() < deadline, f"IPv{version}: pod {target} is not reached"
                seen, _ = self.probe("pod:default/a", pod_ip(target, version))

    def ask(self, where: Sighting, *, ended: bool = False, held: bool = False) -> list[Decision]:
        name = where.at.split()[0]
        question = Question(
            place=where.place,
            ifindex=where.ifindex,
            direction=where.direction,  # type: ignore[arg-type]
            packet=where.packet,
            ended=ended,
        )
        return list(self.decider(self._number[name][0], held=held).decide(question))

    def _fd(self, name: str) -> int:
        number, index = self._number[name]
        return self._places[number].opened[index].fd

    def _interface(self, node: int, place: int, ifindex: int) -> str:
        described = self._places[node].described[place].interfaces
        return next((one.name for one in described if one.index == ifindex), f"if{ifindex}")


def _is_request(packet: Packet, ident: int) -> bool:
    return any(
        isinstance(one, Icmp) and one.type in (8, 128) and one.id == ident for one in packet.inner
    )


def problem_of(decisions: Sequence[Decision]) -> Problem | None:
    found = [one.problem for one in decisions if one.problem is not None]
    assert len(found) <= 1, found
    return found[0] if found else None
