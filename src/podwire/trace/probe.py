"""Sending probes, from inside a pod or a node, as any program there would.

What lives here: `Prober`, the socket that sends a probe and waits for its answer. What does not:
the probes' bytes (`probe_message`), the words for what went wrong (`probe_errors`), and seeing
the packets on their way (`podwire.kernel.observe`).

The namespace is entered only to make sockets; after that they send from any thread. Nothing is
forged: the kernel's own stack chooses route, source address, neighbour and interface, and its
firewall judges.

    icmp   raw socket, connected; a filter in the kernel lets only its own replies through
    udp    connected socket
    tcp    one socket reserves the port; each probe connects with another on the same port, and
           ends with RST, so that no TIME_WAIT is left

Probes are numbered from 1.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import secrets
import select
import socket
import struct
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from ipaddress import ip_address

from podwire.errors import KernelError
from podwire.kernel import netns
from podwire.kernel.observe import cbpf
from podwire.model.probe import Probe
from podwire.trace import probe_message
from podwire.trace.probe_errors import QueuedError, own_refusal, read_errors
from podwire.trace.records import ProbeResult

_DISCARD = 9  # any port: a UDP socket that is only asked for its source address
_MAX_PACKET = 65535
_TICK_S = 0.001  # what poll(2) counts in

# Python's socket module has no names for these (include/uapi/linux/in.h, in6.h).
_PMTUDISC_DO, _PMTUDISC_PROBE = 2, 3
_IPV6_DONTFRAG = 62


@dataclass(frozen=True, slots=True)
class _Family:
    """The socket options' numbers, which differ between IPv4 and IPv6."""

    domain: socket.AddressFamily
    level: int
    icmp: int
    recverr: int
    mtu_discover: int


_FAMILIES = {
    4: _Family(socket.AF_INET, socket.IPPROTO_IP, socket.IPPROTO_ICMP, 11, 10),
    6: _Family(socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPPROTO_ICMPV6, 25, 23),
}


class Prober:
    """A probe's sockets. `source` and `ident` are known before anything is sent.

    `netns_fd` is the namespace to send from, None for the thread's own; the caller may close it
    afterwards. Raises InputError for a probe that makes no sense, and KernelError where the stack
    has no way to the target (with the stack's errno: ENETUNREACH, EACCES, …).
    """

    source: str
    ident: int

    def __init__(self, netns_fd: int | None, probe: Probe) -> None:
        probe_message.check(probe)
        self._probe = probe
        self._version = ip_address(probe.target).version
        self._family = _FAMILIES[self._version]
        self._lock = threading.Lock()
        self._firing = False
        self._closed = False
        self._fds: list[int] = []
        self._socket: socket.socket | None = None
        try:
            self._wake = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._enough = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._netns: int | None = None
            if netns_fd is not None:
                self._netns = self._keep(fcntl.fcntl(netns_fd, fcntl.F_DUPFD_CLOEXEC, 0))
            with self._inside():
                self._socket = self._open()
        except OSError as error:
            self._release()
            code = error.errno or 0
            raise KernelError(f"probe {probe.target}: {own_refusal(code)}", errno=code) from error
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fire(self) -> list[ProbeResult]:
        """Send all probes, one after the other, each when the one before has ended.

        Blocks, for `count` times `timeout_s` at most; `close()` from another thread ends it at
        once, and then only the probes that had ended are in the result.
        """
        with self._lock:
            if self._closed:
                return []
            self._firing = True
        results: list[ProbeResult] = []
        attempt = self._connect if self._probe.protocol == "tcp" else self._exchange
        try:
            for number in range(1, self._probe.count + 1):
                result = attempt(number)
                if result is None:
                    break
                results.append(result)
            return results
        finally:
            with self._lock:
                self._firing = False
                if self._closed:
                    self._release()

    def give_up(self) -> None:
        """Wait no longer for the answer to the probe under way. For another thread."""
        with self._lock:
            if self._firing:
                os.eventfd_write(self._enough, 1)

    def close(self) -> None:
        """Close every socket: now, or as soon as a `fire()` under way has returned."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
            if not self._firing:
                self._release()

    # --- sockets ------------------------------------------------------------------------------

    def _open(self) -> socket.socket:
        """The socket to send from; for TCP the one that reserves the port."""
        probe, family = self._probe, self._family
        with self._new(socket.SOCK_DGRAM) as asked:
            asked.connect((probe.target, probe.port or _DISCARD))  # sends nothing
            self.source = str(asked.getsockname()[0])
        if probe.protocol == "icmp":
            self.ident = secrets.randbelow(0xFFFF) + 1
            sock = self._new(socket.SOCK_RAW, family.icmp)
        else:
            sock = self._new(
                socket.SOCK_DGRAM if probe.protocol == "udp" else socket.SOCK_STREAM, port=0
            )
        try:
            if probe.protocol == "icmp":
                cbpf.attach(sock, probe_message.reply_filter(self._version, self.ident))
            if probe.protocol != "tcp":
                sock.connect((probe.target, probe.port or 0))
                # PROBE sets DF and ignores a learned path MTU, which would hide the place.
                sock.setsockopt(family.level, family.mtu_discover, _PMTUDISC_PROBE)
                if self._version == 6:
                    sock.setsockopt(family.level, _IPV6_DONTFRAG, 1)
            if probe.protocol != "icmp":
                self.ident = int(sock.getsockname()[1])
        except BaseException:
            sock.close()
            raise
        return sock

    def _new(self, kind: socket.SocketKind, protocol: int = 0, *, port: int = 0) -> socket.socket:
        """A socket bound to the probe's source, if it has one, and a TCP socket to `port`."""
        family = self._family
        sock = socket.socket(
            family.domain, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
        )
        try:
            sock.setsockopt(family.level, family.recverr, 1)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
                # TCP leaves DF out with PROBE.
                sock.setsockopt(family.level, family.mtu_discover, _PMTUDISC_DO)
            if self._probe.source is not None or kind == socket.SOCK_STREAM:
                sock.bind((self._probe.source or "", port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _inside(self) -> AbstractContextManager[None]:
        return nullcontext() if self._netns is None else netns.entered(self._netns)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
        while self._fds:
            os.close(self._fds.pop())

    # --- ICMP and UDP -------------------------------------------------------------------------

    def _exchange(self, number: int) -> ProbeResult | None:
        """One probe and its answer; None when closed meanwhile."""
        sock = self._socket
        assert sock is not None  # noqa: S101  set by the constructor
        read_errors(sock)  # of probes before: the next send would fail with them
        self._hope()
        deadline = time.monotonic() + self._probe.timeout_s
        sent = time.monotonic_ns()
        try:
            sock.send(probe_message.build(self._probe, self.ident, number))
        except OSError as error:
            mtu = max((one.info for one in read_errors(sock) if one.offender is None), default=0)
            return _error(number, error.errno or 0, mtu=mtu)
        while True:
            ready = self._wait(sock, select.POLLIN, deadline)
            if ready is None:
                return None
            if not ready:
                return _unanswered(number, deadline - time.monotonic(), self._probe.timeout_s)
            for refusal in read_errors(sock) if ready & select.POLLERR else ():
                if refusal.offender is not None and self._quotes(refusal, number):
                    return self._turned_back(number, refusal)
            if ready & select.POLLIN and self._answered(sock, number):
                return _replied(number, sent)

    def _answered(self, sock: socket.socket, number: int) -> bool:
        """Whether what has been received answers this probe, and not one that timed out."""
        while True:
            try:
                data = sock.recv(_MAX_PACKET)
            except OSError:
                return False
            if self._probe.protocol == "udp":
                if not probe_message.is_of_another(data, self.ident, number):
                    return True
                continue
            start = (data[0] & 0x0F) * 4 if self._version == 4 else 0
            kind = probe_message.ECHO_REPLY[self._version]
            if probe_message.is_echo(data[start:], kind, self.ident, number):
                return True

    def _quotes(self, refusal: QueuedError, number: int) -> bool:
        if self._probe.protocol == "udp":
            return not probe_message.is_of_another(refusal.quoted, self.ident, number)
        kind = probe_message.ECHO_REQUEST[self._version]
        return probe_message.is_echo(refusal.quoted, kind, self.ident, number)

    # --- TCP ----------------------------------------------------------------------------------

    def _connect(self, number: int) -> ProbeResult | None:
        """One connection, reset as soon as it is there; None when closed meanwhile."""
        self._hope()
        deadline = time.monotonic() + self._probe.timeout_s
        try:
            with self._inside():
                sock = self._new(socket.SOCK_STREAM, port=self.ident)
        except OSError as error:
            return _error(number, error.errno or 0)
        with sock:
            sent = time.monotonic_ns()
            code = sock.connect_ex((self._probe.target, self._probe.port))
            if code not in (0, errno.EINPROGRESS):
                return _error(number, code)
            ready = self._wait(sock, select.POLLOUT, deadline)
            if ready is None:
                return None
            if not ready:
                return _unanswered(number, deadline - time.monotonic(), self._probe.timeout_s)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return _replied(number, sent)
            told = [one for one in read_errors(sock) if one.offender is not None]
            if told:
                return self._turned_back(number, told[-1])
            if code == errno.ECONNREFUSED:
                text = f"connection reset, says {self._probe.target}"
                return ProbeResult(number=number, outcome="refused", errno=code, text=text)
            return _error(number, code)

    # --- all ----------------------------------------------------------------------------------

    def _wait(self, sock: socket.socket, events: int, deadline: float) -> int | None:
        """The socket's poll(2) events, 0 when the time is over or given up, None when closed."""
        poller = select.poll()
        poller.register(sock, events)
        poller.register(self._wake, select.POLLIN)
        poller.register(self._enough, select.POLLIN)
        left_ms = math.ceil(max(0.0, deadline - time.monotonic()) * 1000)
        ready = dict(poller.poll(left_ms))
        return None if self._wake in ready else ready.get(sock.fileno(), 0)

    def _hope(self) -> None:
        """Forget that a probe before was given up."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._enough)

    def _turned_back(self, number: int, refusal: QueuedError) -> ProbeResult:
        """An ICMP error. Port unreachable from the target itself means that it arrived there."""
        refused = (
            refusal.errno == errno.ECONNREFUSED
            and refusal.offender is not None
            and ip_address(refusal.offender) == ip_address(self._probe.target)
        )
        return ProbeResult(
            number=number,
            outcome="refused" if refused else "error",
            errno=refusal.errno,
            text=refusal.text(self.source),
        )


def _replied(number: int, sent_ns: int) -> ProbeResult:
    rtt_us = (time.monotonic_ns() - sent_ns) / 1000
    return ProbeResult(number=number, outcome="replied", rtt_us=rtt_us)


def _unanswered(number: int, left_s: float, timeout_s: float) -> ProbeResult:
    given_up_s = timeout_s - left_s if left_s > _TICK_S else None
    return ProbeResult(number=number, outcome="timeout", given_up_s=given_up_s)


def _error(number: int, code: int, *, mtu: int = 0) -> ProbeResult:
    text = own_refusal(code, mtu=mtu)
    return ProbeResult(number=number, outcome="error", errno=code, text=text)
