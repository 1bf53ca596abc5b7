"""What the tunnel is plugged into: the TUN device, a UDP socket a family, and ICMP's sockets.

A new configuration keeps what stays the same: a device or port that is given up for a moment is
packets lost, or taken by somebody else.
"""

from __future__ import annotations

from podwire.errors import KernelError
from podwire.kernel.tun import Tun, attach_tun
from podwire.model.tunnel import TunnelConfig
from podwire.tunnel.readers import Readers
from podwire.tunnel.sockets import IcmpSocket, Underlay
from podwire.tunnel.table import parse_address

_DEVICE_GONE = "its TUN device was deleted under it; it is started anew when the device is back"


class Plugs:
    """The descriptors of the data path; `readers` forgets those that are given up."""

    def __init__(self, readers: Readers, *, offloads: bool = True) -> None:
        self._readers, self._offloads = readers, offloads
        self._dev = ""
        self.tun: Tun | None = None
        #: By local address and port.
        self.underlays: dict[tuple[str, int], Underlay] = {}
        self.icmp = IcmpSocket()

    def change(self, config: TunnelConfig) -> None:
        """Plug into what a configuration says. Raises KernelError, or InputError; nothing has
        changed then."""
        wanted = [(str(parse_address(text, "local")), config.port) for text in config.local]
        made: list[Tun | Underlay] = []
        try:
            tun = self.tun
            if tun is None or config.dev != self._dev:
                tun = attach_tun(config.dev, offloads=self._offloads)
                made.append(tun)
            underlays = {}
            for one in wanted:
                underlays[one] = self.underlays.get(one) or Underlay(*one, offloads=self._offloads)
                if one not in self.underlays:
                    made.append(underlays[one])
        except BaseException:
            for plug in made:
                plug.close()
            raise
        self._swap(config.dev, tun, underlays)

    def _swap(self, dev: str, tun: Tun, underlays: dict[tuple[str, int], Underlay]) -> None:
        before: set[Tun | Underlay] = {*self.underlays.values()}
        after: set[Tun | Underlay] = {tun, *underlays.values()}
        if self.tun is not None:
            before.add(self.tun)
        for plug in before - after:
            for fd in plug.descriptors:
                self._readers.drop(fd)
            plug.close()
        self._dev, self.tun, self.underlays = dev, tun, underlays

    def check(self, fd: int) -> None:
        """Epoll has reported an error of a descriptor. Raises KernelError for a device that is
        gone; the errors of a UDP socket are of datagrams sent before, and are over when read."""
        if self.tun is not None and fd == self.tun.fd:
            raise KernelError(
                f"{self._dev}: no such device any more", errno=19, remedy=_DEVICE_GONE
            )
        for one in self.underlays.values():
            if one.fd == fd:
                one.clear_error()

    def features(self) -> tuple[str, ...]:
        """The offloads in use."""
        found = list(self.tun.features if self.tun is not None else ())
        if all(one.gso for one in self.underlays.values()):
            found.append("gso")
        if all(one.gro for one in self.underlays.values()):
            found.append("gro")
        return tuple(found)

    def close(self) -> None:
        """Give up everything; the device stays."""
        self.icmp.close()
        for one in self.underlays.values():
            one.close()
        if self.tun is not None:
            self.tun.close()
