"""What a lab and its agents hold of the kernel, to be compared before and after."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podwire.lab import Lab, processes
from podwire.lab.places import Place

_BPF_PROG_GET_FD_BY_ID = 13
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
#: Of each namespace: rules without their counters, sockets without their queues. The agent's own
#: sockets, to its API and for its metrics, come and go.
_LINES = """
    tail -n +2 /proc/net/packet
    nft -s list ruleset
    ss -Hnauw | awk '{print $1, $4, $5}'
    tail -n +2 /proc/net/netlink | awk '{print $2, $3}'
    ip -br link; ip rule; ip route
    ss -Hxn | grep operator.sock
"""


class Agent(NamedTuple):
    """An agent's process: what its descriptors are, by kind, and how many threads it has."""

    descriptors: tuple[tuple[str, int], ...]
    threads: int


def is_asked(lab: Lab) -> bool:
    """Whether an agent has a session with anybody."""
    return any(node.exec(["sh", "-c", "ss -Hxn | grep operator.sock"]).stdout for node in lab.nodes)


def pid_of(lab: Lab, node: str) -> int:
    pid = lab.node(node).process("agent").pid
    assert pid is not None
    return pid


def agent(pid: int) -> Agent:
    kinds: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            kinds[re.sub(r"\d+", "N", str(fd.readlink()))] += 1
    return Agent(tuple(sorted(kinds.items())), len(list(Path(f"/proc/{pid}/task").iterdir())))


def held(lab: Lab, places: Sequence[Place]) -> Counter[tuple[str, str]]:
    """Everything that somebody else than the kernel itself has put there: where, what, and how
    many of it."""
    found = Counter(
        (repr(place), line)
        for place in places
        for line in place.exec(["sh", "-c", _LINES]).stdout.splitlines()
    )
    record = lab.info.record()
    assert record is not None
    found.update(("processes", name) for name in processes.marked(record.id).values())
    for node in lab.nodes:
        for kind, count in agent(pid_of(lab, node.name)).descriptors:
            found[f"the agent of {node.name}", kind] = count
    return found


def programs(pid: int) -> set[int]:
    """The ids of the eBPF programs that a process has attached, and that end with it. (Those that
    guard pods' ports hang there without it.)"""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            text = info.read_text()
            if "link_type:" in text:
                found |= {int(one) for one in re.findall(r"^prog_id:\s*(\d+)", text, re.M)}
    return found


def is_loaded(program: int) -> bool:
    """Whether the kernel still has the eBPF program."""
    attributes = ctypes.create_string_buffer(program.to_bytes(4, "little"), 16)
    call = ctypes.CDLL(None, use_errno=True).syscall
    fd: int = call(_SYS_BPF[os.uname().machine], _BPF_PROG_GET_FD_BY_ID, attributes, 16)
    if fd < 0:
        return False
    os.close(fd)
    return True
