"""How the processor is shared out: a thread's slice and its weight (sched_setattr(2)).

Since Linux 6.12 a thread of the usual policy may ask for slices of its own length. A short one has
its turn sooner when there is something to do, and gives less away when it yields; how much of the
processor it gets in all stays the same. Older kernels take the value and leave it. How much it gets
where others want it too is its weight's to say, which its nice value stands for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

#: The number of the system call, which the C library has no function for (asm/unistd.h).
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}
#: struct sched_attr: size, policy, flags, nice, priority, then three times in nanoseconds, and two
#: bounds of utilisation (linux/sched/types.h).
_SCHED_ATTR = struct.Struct("=IIQiIQQQII")
_SCHED_OTHER = 0

_libc = ctypes.CDLL(None, use_errno=True)


def go_before_others(nice: int) -> int:
    """Give this process a nice value, from -20 (before all others) to 19, if it has a higher one
    and may give itself that (CAP_SYS_NICE); the one it has then."""
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if nice < now:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            return nice
    return now


def ask_for_slice(seconds: float) -> bool:
    """Ask for slices of that length, 0.1 ms at least, for the calling thread; whether it worked."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != _SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    runtime = round(seconds * 1e9)
    attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, _SCHED_OTHER, 0, nice, 0, runtime, 0, 0, 0, 0)
    done: int = _libc.syscall(number, 0, ctypes.c_char_p(attr), 0)
    return done == 0
