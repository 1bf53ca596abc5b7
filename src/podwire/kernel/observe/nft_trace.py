"""NftTap: which nft rules judge a probe's packets in one network namespace.

What lives here: the tap, from the match to `RawNftStep`s. What does not: the marking rules
(`nft_match`), the messages (`nft_messages`), the rules' texts (`nft_rules`), and what a step
means for the trace.

    our table ──nftrace=1──▶ the packet meets others' rules ──NFNLGRP_NFTRACE──▶ read()

A table of our own marks the probe's packets before any other rule sees them (priority INT_MIN, at
prerouting and output; on bridges also at forward, where flooding makes copies). It is owned by
our netlink socket: nobody else can change it, and it goes with the socket, also when the process
is killed. From there on the kernel tells of each rule that the packet meets until it leaves the
namespace.

It tells everybody who listens about every marked packet, whoever marked it. Ours are those of
which it first told that our own rule marked them; from then on they are known by their id. The
kernel makes that of the packet's place in memory and its flow, so that packets soon after may
have the same: what no translation changes in a packet's headers tells them apart.

Only families that have tables are looked at: where nobody filters, nothing is put in the way. So
a table that is made after the tap is opened may be missed, as are rules of iptables-legacy, which
the kernel does not tell about, and chains at a device's ingress or egress (family netdev), which
are passed outside of the hooks that mark.

`reject` is told as the verdict `drop`: the rule's text says which. NAT statements are told as
`accept`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from typing import NamedTuple

from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import netns
from podwire.kernel.netlink import (
    NETLINK_NETFILTER,
    Failure,
    Message,
    NetlinkSocket,
    kernel_error,
)
from podwire.kernel.observe import nft_match
from podwire.kernel.observe import nft_messages as nft
from podwire.kernel.observe.nft_rules import RuleTexts
from podwire.model.probe import ProbeMatch

#: All taps' tables are called so, with a random end.
PREFIX = "podwire_trace_"

_FIRST = -(2**31)  # before every other chain
#: Hook numbers (linux/netfilter.h, netfilter_bridge.h, netfilter_arp.h) where packets come from,
#: by the family of our table.
_HOOKS = {
    nft.INET: {"prerouting": 0, "output": 3},
    nft.BRIDGE: {"prerouting": 0, "forward": 2, "output": 3},
    nft.ARP: {"input": 0, "output": 1},
}
#: Our family that sees what tables of a family see; those of family netdev are not traced.
_SEEN_BY = {
    nft.INET: nft.INET,
    nft.IPV4: nft.INET,
    nft.IPV6: nft.INET,
    nft.BRIDGE: nft.BRIDGE,
    nft.ARP: nft.ARP,
}
#: Packets whose headers are kept; one is in the kernel for some µs only.
_REMEMBERED = 4096


class RawNftStep(NamedTuple):
    """A rule that a packet met, or the policy of a base chain that it got through.

    `kind` is `rule` or `policy`; `rule` is the text, empty for a policy and for a rule that is
    gone meanwhile. `time_ns` is when it was read: the kernel tells no time, only the order.
    `mark` is what the packet had after it. `data` is the network header and up to 20 bytes from the
    transport header on.
    """

    time_ns: int
    kind: str
    family: str
    table: str
    chain: str
    rule: str
    handle: int
    verdict: str
    iif: int
    oif: int
    mark: int
    data: bytes


class _Packet(NamedTuple):
    """What was last told of a packet's headers; `ours` once our own rule has marked it."""

    identity: tuple[bytes, ...]
    iif: int
    oif: int
    data: bytes
    ours: bool


class NftTap:
    """Tells which rules judge the packets of `match` in a namespace.

    `netns_fd` is None for the calling thread's own. Rules are told that decide (accept, drop,
    jump, goto, queue) or change something (`meta mark set …`), and policies. Not for use by two
    threads at once. Raises UnsupportedError where the kernel can't do this, else KernelError.
    """

    def __init__(self, netns_fd: int | None, match: ProbeMatch) -> None:
        self.lost = 0  # how often steps were lost, as there was no room for them
        self._name = PREFIX + secrets.token_hex(4)
        self._texts: RuleTexts | None = None
        self._packets: dict[int, _Packet] = {}
        with netns.entered(netns_fd) if netns_fd is not None else contextlib.nullcontext():
            try:
                self._socket = NetlinkSocket(NETLINK_NETFILTER, (nft.NFNLGRP_NFTRACE,))
            except OSError as error:
                raise _refused(error) from error
            try:
                families = self._families()
                if families:
                    self._texts = RuleTexts()
                rules = nft_match.chains(match)
                for family in families:
                    self._install(family, rules)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> NftTap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the table away with its socket. Closing twice is fine."""
        self._socket.close()
        if self._texts is not None:
            self._texts.close()
            self._texts = None

    def fileno(self) -> int:
        """Readable when there are steps."""
        return self._socket.fileno()

    def read(self) -> list[RawNftStep]:
        """What has been told since the last time, in order. Never waits for more."""
        notified = self._notified()
        if not notified or self._texts is None:
            return []
        now = time.time_ns()
        self._texts.refresh()
        told = (nft.parse_trace(one.type, one.payload) for one in notified)
        steps = (self._step(one, now, self._texts) for one in told if one is not None)
        return [step for step in steps if step is not None]

    def _notified(self) -> list[Message]:
        while True:
            try:
                return self._socket.notifications()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1

    def _step(self, told: nft.TraceMessage, now: int, texts: RuleTexts) -> RawNftStep | None:
        packet = self._packet(told)
        if packet is None or not packet.ours or told.table.startswith(PREFIX):
            return None
        if told.verdict == "return":  # by a rule or at a chain's end
            return None
        family = nft.FAMILY_NAMES.get(told.family, str(told.family))
        rule = ""
        if told.kind == "rule":
            rule = texts.text(family, told.table, told.chain, told.handle)
            if told.verdict == "continue" and " set " not in rule:
                return None
        return RawNftStep(
            now,
            told.kind,
            family,
            told.table,
            told.chain,
            rule,
            told.handle,
            told.verdict,
            packet.iif,
            packet.oif,
            told.mark,
            packet.data,
        )

    def _packet(self, told: nft.TraceMessage) -> _Packet | None:
        """The packet that a message is about; None where its headers were never told."""
        packet = self._packets.pop(told.id, None)
        if told.data:
            identity = _identity(told.data)
            packet = _Packet(
                identity,
                told.iif,
                told.oif,
                told.data,
                ours=packet is not None and packet.ours and packet.identity == identity,
            )
        if packet is None:
            return None
        if (told.table, told.chain) == (self._name, nft_match.MARK):
            packet = packet._replace(ours=True)
        self._packets[told.id] = packet
        if len(self._packets) > _REMEMBERED:
            del self._packets[next(iter(self._packets))]
        return packet

    def _families(self) -> list[int]:
        """The families of ours that it takes to see every table that is there."""
        try:
            found = self._socket.dump(*nft.getting_tables())
        except KernelError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise UnsupportedError(
                    "this kernel has no nf_tables: no nft rules to see"
                ) from error
            raise
        tables = (nft.parse_table(one) for one in found)
        seen_by = {_SEEN_BY.get(family) for family, name in tables if not name.startswith(PREFIX)}
        return [family for family in _HOOKS if family in seen_by]

    def _install(self, family: int, chains: nft_match.Chains) -> None:
        name, hooks = self._name, _HOOKS[family]
        messages = [nft.new_table(family, name)]
        messages += [nft.new_chain(family, name, chain) for chain in chains]
        messages += [
            nft.new_chain(family, name, hook, hook=number, priority=_FIRST)
            for hook, number in hooks.items()
        ]
        messages += [
            nft.new_rule(family, name, chain, rule)
            for chain, rules in chains.items()
            for rule in rules
        ]
        messages += [
            nft.new_rule(family, name, hook, [nft.jump(nft_match.START)]) for hook in hooks
        ]
        if failures := self._socket.request(nft.batch(messages)):
            raise not_installed(failures)


def _identity(data: bytes) -> tuple[bytes, ...]:
    """What stays in a packet's headers while it is in a namespace, and differs between packets.

    So no addresses and ports, TTL, DSCP or checksums.
    """
    version = data[0] >> 4
    if version == 4:
        length_and_id, protocol, start = data[2:6], data[9:10], (data[0] & 0x0F) * 4
    elif version == 6:
        length_and_id, protocol, start = data[4:6], data[6:7], 40
    else:  # ARP has nothing that changes.
        return (data,)
    transport = data[start:]
    match protocol:
        case b"\x06":
            rest = transport[4:14]  # TCP's sequence, acknowledgement and flags
        case b"\x11":
            rest = transport[4:6] + transport[8:]  # UDP's length and payload
        case _:
            # ICMP but its checksum, an echo's identifier, and the checksum of what an error quotes.
            rest = transport[:2] + transport[6:18]
    return length_and_id, protocol, rest


def not_installed(failures: list[Failure]) -> UnsupportedError | KernelError:
    """The exception for a table that the kernel did not take."""
    # 1 is the table, behind the batch's begin: its flag "owner" is what older kernels don't know.
    if any(one.index == 1 and one.errno in (errno.EINVAL, errno.EOPNOTSUPP) for one in failures):
        return UnsupportedError(
            "which nft rules judge a packet takes a kernel with tables that are owned by a process"
            " (Linux 5.12)"
        )
    return kernel_error("trace nft rules", failures[0])


def _refused(error: OSError) -> KernelError:
    number = error.errno or 0
    remedy = "run as root, or with CAP_NET_ADMIN" if number == errno.EPERM else None
    return KernelError(f"nft trace socket: {os.strerror(number)}", errno=number, remedy=remedy)
