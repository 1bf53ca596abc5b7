"""Other traffic: small UDP packets, as many a second as wanted, from a network namespace.

A packet's whole way through veths, bridges and tunnels is worked on by the processor that sends
it. So two senders, and a rate of their own for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from podwire.kernel import netns

SENDERS = 2
_BATCH = 32

_spawn = multiprocessing.get_context("spawn")


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of a connected socket: one vector, nothing else."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_long),  # An int, and the padding at the end of struct msghdr.
        ("sent", ctypes.c_uint),
    )


@contextlib.contextmanager
def flooding(
    place: str,
    to: tuple[str, int],
    rate: float,
    seconds: float | None = None,
    *,
    senders: int = SENDERS,
    payload: bytes = b"x" * 64,
) -> Iterator[list[Connection]]:
    """Send datagrams from the namespace at the path `place`: `rate` of them a second (0: as fast
    as it goes), for so many seconds, or (None) until the block ends.

    Each connection tells how many nanoseconds of the processor a packet took, after `seconds`.
    """
    pipes, processes = [], []
    for _ in range(senders):
        ours, theirs = _spawn.Pipe()
        share = (place, to, rate / senders, seconds, payload, theirs)
        processes.append(_spawn.Process(target=_flood, args=share, daemon=True))
        pipes.append(ours)
    for process in processes:
        process.start()
    try:
        yield pipes
    finally:
        for process in processes:
            if seconds is None:
                process.terminate()
            process.join()


def _flood(
    place: str,
    to: tuple[str, int],
    rate: float,
    seconds: float | None,
    payload: bytes,
    pipe: Connection,
) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    data = ctypes.create_string_buffer(payload, len(payload))
    vector = _Vector(ctypes.addressof(data), len(payload))
    messages = (_Message * _BATCH)()
    for message in messages:
        message.vectors, message.vector_count = ctypes.pointer(vector), 1
    fd = netns.open_netns(place)
    with netns.entered(fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    os.close(fd)
    sock.connect(to)
    started, used = time.perf_counter(), time.process_time()
    sent, now = 0, started
    while seconds is None or now - started < seconds:
        if not rate or sent <= (now - started) * rate:
            sent += max(libc.sendmmsg(sock.fileno(), messages, _BATCH, 0), 0)
        else:
            time.sleep(_BATCH / rate)
        now = time.perf_counter()
    pipe.send((time.process_time() - used) / max(sent, 1) * 1e9)
    sock.close()
