"""Where a kernel keeps what the drop program reads: offsets in its structs, from its BTF.

What lives here: which struct members, tracepoint arguments and enumerators are wanted, under the
kernel's names. What does not: finding them (`btf`), and the program (`drop_program`).

The tracepoint gained its arguments over time: `skb, location` at first, the reason in Linux 5.17,
the receiving socket in 6.11. So they are found by their types.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from podwire.errors import UnsupportedError
from podwire.kernel.observe.btf import Btf

TRACEPOINT = "kfree_skb"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Where this kernel keeps what the program reads, in bytes; and its drop reasons' names.

    `skb`, `location`, `reason` and `socket` are the tracepoint's arguments, by position; not
    every version tells the socket.
    """

    skb: int
    location: int
    reason: int
    socket: int | None
    head: int
    data: int
    tail: int
    network_header: int
    device: int
    route: int
    owner: int
    route_device: int
    device_index: int
    device_name: int
    device_netns: int
    socket_netns: int
    netns_inode: int
    reasons: Mapping[int, str]


def layout(btf: Btf) -> Layout:
    """Raises UnsupportedError naming what this kernel's types do not have."""

    def at(name: str, path: str, size: int) -> int:
        member = btf.member(name, path)
        if member.size != size:
            raise UnsupportedError(f"{name}.{path} has {member.size} bytes in this kernel")
        return member.offset

    arguments = btf.tracepoint(TRACEPOINT)

    def argument(spelled: str) -> int:
        if spelled not in arguments:
            raise UnsupportedError(
                f"this kernel's {TRACEPOINT} tracepoint does not tell the {spelled}",
                remedy="use Linux 5.17 or newer",
            )
        return arguments.index(spelled)

    # In C's names. Reasons outside of this enum (Open vSwitch's, Wi-Fi's) are told by number.
    return Layout(
        skb=argument("struct sk_buff *"),
        location=argument("void *"),
        reason=argument("enum skb_drop_reason"),
        socket=argument("struct sock *") if "struct sock *" in arguments else None,
        head=at("sk_buff", "head", 8),
        data=at("sk_buff", "data", 8),
        tail=at("sk_buff", "tail", 4),
        network_header=at("sk_buff", "network_header", 2),
        device=at("sk_buff", "dev", 8),
        route=at("sk_buff", "_skb_refdst", 8),
        owner=at("sk_buff", "sk", 8),
        route_device=at("dst_entry", "dev", 8),
        device_index=at("net_device", "ifindex", 4),
        device_name=at("net_device", "name", 16),
        device_netns=at("net_device", "nd_net.net", 8),
        socket_netns=at("sock", "__sk_common.skc_net.net", 8),
        netns_inode=at("net", "ns.inum", 4),
        reasons={
            value: name.removeprefix("SKB_").removeprefix("DROP_REASON_")
            for value, name in btf.enum("skb_drop_reason").items()
        },
    )
