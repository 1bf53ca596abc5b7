"""The network namespaces of a node that a trace is about: opened, and described as places.

What lives here: a node's own namespace and its pods', each with a descriptor and a netlink socket
inside, and the interfaces as they are at that moment. What does not: who knows which pods there
are (the agent), and what is seen in them (`observer`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.boot import boot_id
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.observe.interfaces import InterfaceState, read_interfaces
from podwire.trace.model import Interface, Place

_SELF = "/proc/thread-self/ns/net"


def clock() -> str:
    """What times of this machine may be compared with: this boot's id."""
    return boot_id()


class OpenPlace:
    """A namespace that is held open. `inode` is how the kernel names it."""

    def __init__(self, path: str) -> None:
        """Raises KernelError where there is no namespace at `path`."""
        with contextlib.ExitStack() as stack:
            self.fd = netns.open_netns(path)
            stack.callback(os.close, self.fd)
            self.inode = os.fstat(self.fd).st_ino
            with netns.entered(self.fd):
                self.socket = stack.enter_context(NetlinkSocket())
            self.interfaces = read_interfaces(self.socket)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()


class Places:
    """The node's own namespace first, then those of pods, each once.

    `pods` are paths by `namespace/name`; one that can't be opened is left out, with a note. To be
    made in a thread that is in the node's namespace. `underlay` is the name of its link there.
    """

    def __init__(self, node: str, underlay: str, pods: Mapping[str, str]) -> None:
        self.notes: list[str] = []
        self.opened: list[OpenPlace] = []
        names = [""]
        try:
            self.opened.append(OpenPlace(_SELF))
            for pod, path in pods.items():
                try:
                    self.opened.append(OpenPlace(path))
                except KernelError as error:
                    self.notes.append(f"pod {pod} can't be looked into: {error.message}")
                else:
                    names.append(pod)
            self.described = _describe(node, underlay, names, self.opened)
        except BaseException:
            self.close()
            raise
        self.by_inode = {one.inode: number for number, one in enumerate(self.opened)}

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


def _describe(
    node: str, underlay: str, names: Sequence[str], opened: Sequence[OpenPlace]
) -> tuple[Place, ...]:
    now = clock()
    states = [one.interfaces for one in opened]
    return tuple(
        Place(
            node=node,
            pod=pod,
            clock=now,
            interfaces=tuple(
                _interface(
                    state,
                    _peer_place(number, state, states),
                    underlay=number == 0 and state.name == underlay,
                )
                for state in states[number]
            ),
        )
        for number, pod in enumerate(names)
    )


def _interface(state: InterfaceState, peer_place: int | None, *, underlay: bool) -> Interface:
    return Interface(
        index=state.index,
        name=state.name,
        kind=state.kind,
        mac=state.mac_text,
        mtu=state.mtu,
        up=state.up,
        master=state.master,
        peer=state.link if state.kind == "veth" else 0,
        peer_place=peer_place,
        addresses=state.addresses,
        vni=state.vxlan.vni if state.vxlan else None,
        port=state.vxlan.port if state.vxlan else None,
        underlay=underlay,
    )


def _peer_place(
    number: int, state: InterfaceState, states: Sequence[Sequence[InterfaceState]]
) -> int | None:
    """Where a veth's other end is, when that is a place too: two ends name each other's index."""
    if state.kind != "veth":
        return None
    if state.link_netnsid < 0:
        return number
    # A pod's cable ends in the node.
    candidates = [0] if number else range(1, len(states))
    for other in candidates:
        for far in states[other]:
            if far.kind == "veth" and (far.index, far.link) == (state.link, state.index):
                return other
    return None
