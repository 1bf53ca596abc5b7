"""bpf(2): maps and programs, by descriptor; a raw tracepoint's program, and the ring that it fills.

What lives here: the system calls and the ring buffer's consumer. What does not: the programs.

Maps, programs and attachments are descriptors and nothing else: nothing is pinned, so all of it
goes with the process, however that ends, but for a classifier that netlink has hung to a device,
and the maps that it uses. Needs CAP_BPF and CAP_PERFMON, or root.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import struct
import sys
from errno import E2BIG, EACCES, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path
from threading import Lock

from podwire.errors import KernelError, PodwireError, UnsupportedError

# enum bpf_cmd, enum bpf_map_type, enum bpf_prog_type (include/uapi/linux/bpf.h)
_MAP_CREATE, _MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM = 0, 1, 2, 3
_MAP_GET_NEXT_KEY, _PROG_LOAD = 4, 5
_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD = 13, 14, 15
_RAW_TRACEPOINT_OPEN, _MAP_FREEZE, _MAP_LOOKUP_BATCH = 17, 22, 24
_MAP_TYPE_HASH, _MAP_TYPE_ARRAY, _MAP_TYPE_RINGBUF = 1, 2, 27
_F_NO_PREALLOC = 1
_PROG_TYPE_SCHED_CLS, _PROG_TYPE_RAW_TRACEPOINT = 3, 17
_F_RDONLY_PROG = 1 << 7

# union bpf_attr, by command
_MAP = struct.Struct("<IIIII8x16s")  # type, key, value, entries, flags, …, name
_ELEMENT = struct.Struct("<I4xQQQ")  # map, key, value, flags
_BATCH = struct.Struct("<QQQQIIQQ")  # in, out, keys, values, count, map, flags of elements, flags
_PROGRAM = struct.Struct("<IIQQIIQ8x16s")  # type, length, code, licence, log (level, size, at), …
_ATTACH = struct.Struct("<QI4x")  # tracepoint, program
_BY_ID = struct.Struct("<III")  # id, next id, flags
_INFO = struct.Struct("<IIQ")  # descriptor, length, where to

# struct bpf_prog_info and struct bpf_map_info: how long they are here, and where in them what is.
# Where the maps' ids go to follows their number.
_PROGRAM_INFO_BYTES, _PROGRAM_ID_AT, _MAP_COUNT_AT = 80, 4, 52
_MAP_INFO_BYTES, _MAP_NAME_AT, _NAME_BYTES = 40, 24, 16
#: So many values are read at once.
_AT_ONCE = 4096
#: So many maps of a program are looked at.
_MAPS = 16

#: bpf(2)'s number; glibc has no function for it.
_CALL_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}
_INSTRUCTION_BYTES = 8
_LOG_BYTES = 1 << 20
#: How kernels say that they do not know the command, the map's or the program's type, a helper or
#: the tracepoint.
_NOT_HERE = frozenset({ENOSYS, EINVAL, EACCES, ENOENT, E2BIG, EOPNOTSUPP})
LOCKDOWN = Path("/sys/kernel/security/lockdown")

_libc = ctypes.CDLL(None, use_errno=True)


def new_ring(name: str, size: int) -> int:
    """A ring buffer map's descriptor; `size` in bytes, a power of two of whole pages."""
    return call(
        _MAP_CREATE, _MAP.pack(_MAP_TYPE_RINGBUF, 0, 0, size, 0, name.encode()), "ring buffer"
    )


def new_constant(name: str, value: bytes) -> int:
    """The descriptor of a map that holds one value, which nobody can change any more."""
    attributes = _MAP.pack(_MAP_TYPE_ARRAY, 4, len(value), 1, _F_RDONLY_PROG, name.encode())
    fd = call(_MAP_CREATE, attributes, "constant")
    try:
        _write(fd, 0, value, "constant")
        call(_MAP_FREEZE, fd.to_bytes(4, "little"), "constant")
    except BaseException:
        os.close(fd)
        raise
    return fd


def new_array(name: str, size: int) -> int:
    """The descriptor of a map of one value, `size` bytes of zeros."""
    return call(_MAP_CREATE, _MAP.pack(_MAP_TYPE_ARRAY, 4, size, 1, 0, name.encode()), "array")


def new_hash(name: str, size: int, most: int) -> int:
    """The descriptor of a map of values, `size` bytes each, by a number of 32 bits."""
    attributes = _MAP.pack(_MAP_TYPE_HASH, 4, size, most, _F_NO_PREALLOC, name.encode())
    return call(_MAP_CREATE, attributes, "hash")


def write_hash(fd: int, key: int, value: bytes) -> None:
    """Put a value there, or another in its place, in one step."""
    _write(fd, key, value, "hash")


def delete_hash(fd: int, key: int) -> None:
    """It is no failure if there is none."""
    number = ctypes.c_uint32(key)
    with contextlib.suppress(PodwireError):
        call(_MAP_DELETE_ELEM, _ELEMENT.pack(fd, ctypes.addressof(number), 0, 0), "hash")


def hash_keys(fd: int) -> list[int]:
    """The numbers that there are values of."""
    found: list[int] = []
    key, after = ctypes.c_uint32(0), ctypes.c_uint32(0)
    before = 0
    with contextlib.suppress(PodwireError):  # Behind the last one there is none: ENOENT.
        while True:
            where = _ELEMENT.pack(fd, before, ctypes.addressof(after), 0)
            call(_MAP_GET_NEXT_KEY, where, "hash")
            found.append(after.value)
            key.value = after.value
            before = ctypes.addressof(key)
    return found


def read_value(fd: int, key: int, size: int) -> bytes | None:
    """The value there, None where there is none. That of an array of one is at 0."""
    number, value = ctypes.c_uint32(key), ctypes.create_string_buffer(size)
    where = _ELEMENT.pack(fd, ctypes.addressof(number), ctypes.addressof(value), 0)
    attr = ctypes.create_string_buffer(where, len(where))
    return None if _call(_MAP_LOOKUP_ELEM, attr, "value", also=ENOENT) < 0 else value.raw


def read_hash(fd: int, size: int) -> dict[int, bytes]:
    """All values, `size` bytes each, by their numbers; thousands in one call (Linux 5.6)."""
    found: dict[int, bytes] = {}
    place, start = ctypes.c_uint32(0), 0
    keys = (ctypes.c_uint32 * _AT_ONCE)()
    values = ctypes.create_string_buffer(size * _AT_ONCE)
    is_last = False
    while not is_last:
        where = (ctypes.addressof(place), ctypes.addressof(keys), ctypes.addressof(values))
        attributes = _BATCH.pack(start, *where, _AT_ONCE, fd, 0, 0)
        attr = ctypes.create_string_buffer(attributes, len(attributes))
        # Behind the last one there is none; those before it have been read.
        is_last = _call(_MAP_LOOKUP_BATCH, attr, "hash", also=ENOENT) < 0
        count: int = _BATCH.unpack(attr)[4]
        raw = values.raw[: size * count]
        found |= {keys[at]: raw[size * at : size * (at + 1)] for at in range(count)}
        start = ctypes.addressof(place)
    return found


def _write(fd: int, key: int, value: bytes, what: str) -> None:
    number, held = ctypes.c_uint32(key), ctypes.create_string_buffer(value, len(value))
    where = _ELEMENT.pack(fd, ctypes.addressof(number), ctypes.addressof(held), 0)
    call(_MAP_UPDATE_ELEM, where, what)


def program_by_id(program_id: int) -> int:
    """The descriptor of a loaded program. Raises PodwireError where it is gone."""
    return call(_PROG_GET_FD_BY_ID, _BY_ID.pack(program_id, 0, 0), "program")


def program_id(program: int) -> int:
    """What the kernel knows a loaded program by, of its descriptor."""
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    _read_info(program, info)
    found: int = struct.unpack_from("<I", info, _PROGRAM_ID_AT)[0]
    return found


def map_of_program(program: int, name: str) -> int | None:
    """The descriptor of the map of that name which a loaded program uses; None where it uses none.

    Raises PodwireError. Takes CAP_SYS_ADMIN.
    """
    ids = (ctypes.c_uint32 * _MAPS)()
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    struct.pack_into("<IQ", info, _MAP_COUNT_AT, _MAPS, ctypes.addressof(ids))
    _read_info(program, info)
    (count,) = struct.unpack_from("<I", info, _MAP_COUNT_AT)
    for one in ids[: min(count, _MAPS)]:
        fd = call(_MAP_GET_FD_BY_ID, _BY_ID.pack(one, 0, 0), "map")
        info = ctypes.create_string_buffer(_MAP_INFO_BYTES)
        _read_info(fd, info)
        if info.raw[_MAP_NAME_AT:][:_NAME_BYTES].rstrip(b"\0") == name.encode():
            return fd
        os.close(fd)
    return None


def _read_info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    call(_OBJ_GET_INFO_BY_FD, _INFO.pack(fd, len(info), ctypes.addressof(info)), "information")


def load_classifier(name: str, code: bytes, licence: str) -> int:
    """The descriptor of a program for the traffic control of a device.

    Raises UnsupportedError as `load_raw_tracepoint`.
    """
    return _load(_PROG_TYPE_SCHED_CLS, name, code, licence)


def load_raw_tracepoint(name: str, code: bytes, licence: str) -> int:
    """A program's descriptor; `licence` decides which helpers it may call.

    Raises UnsupportedError where this process may not, or the machine can't: with the verifier's
    words where it is the program that is refused.
    """
    if _locked_down():
        raise UnsupportedError("the kernel is locked down: programs may not read its memory")
    return _load(_PROG_TYPE_RAW_TRACEPOINT, name, code, licence)


def _load(kind: int, name: str, code: bytes, licence: str) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(licence.encode())

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = _PROGRAM.pack(
            kind,
            len(code) // _INSTRUCTION_BYTES,
            ctypes.addressof(instructions),
            ctypes.addressof(words),
            1 if log else 0,
            len(log) if log else 0,
            ctypes.addressof(log) if log else 0,
            name.encode(),
        )
        return call(_PROG_LOAD, attributes, "program")

    try:
        return load(None)
    except PodwireError as error:
        # The log costs time and memory, so it is asked for only when there is something to tell.
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return load(log)
        except PodwireError:
            told = log.value.decode(errors="replace").splitlines()
            # What comes last, but for statistics, is why.
            why = next((one for one in reversed(told) if not one.startswith("processed")), None)
            if why is None:
                raise error from None
            raise UnsupportedError(f"{error.message}: {why}", remedy=error.remedy) from None


def attach_raw_tracepoint(program: int, tracepoint: str) -> int:
    """The attachment's descriptor: closing it ends it. The program's own may be closed."""
    words = ctypes.create_string_buffer(tracepoint.encode())
    attributes = _ATTACH.pack(ctypes.addressof(words), program)
    return call(_RAW_TRACEPOINT_OPEN, attributes, f"tracepoint {tracepoint}")


class RingBuffer:
    """The reading end of a ring buffer map, whose descriptor it takes over. Raises KernelError.

    (Documentation/bpf/ringbuf.rst.) The first page holds how far was read, the second how far was
    written; then come the data, mapped twice in a row, so that a record that wraps can be read as
    if it did not. A record is 8 bytes of header, then its data, padded to 8 bytes.
    """

    _BUSY, _DISCARDED = 1 << 31, 1 << 30

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._mask = size - 1
        page = mmap.PAGESIZE
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, fd)
            try:
                read_page = opened.enter_context(mmap.mmap(fd, page))
                written = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
            except OSError as error:
                number = error.errno or 0
                text = f"eBPF ring buffer: {os.strerror(number)}"
                raise KernelError(text, errno=number) from error
            opened.enter_context(written)
            # The views hold the maps: they go before them.
            whole = opened.enter_context(memoryview(written))
            self._consumer = opened.enter_context(memoryview(read_page).cast("Q"))
            self._producer = opened.enter_context(whole[:page].cast("Q"))
            self._headers = opened.enter_context(whole[page:].cast("I"))
            self._data = opened.enter_context(whole[page:])
            self._opened = opened.pop_all()
        # Two readers would tear the position apart; besides, taking a lock keeps the processor
        # from reading data before the position that says they are there.
        self._lock = Lock()

    def fileno(self) -> int:
        """Readable (poll) while there is something to read."""
        return self._fd

    def read(self) -> list[bytes]:
        """Everything that is there; does not wait."""
        records: list[bytes] = []
        if self._fd < 0:
            return records
        end = self._producer[0]
        with self._lock:
            position = self._consumer[0]
            while position < end:
                at = position & self._mask
                header = self._headers[at // 4]
                if header & self._BUSY:
                    break
                length = header & ~(self._BUSY | self._DISCARDED)
                if not header & self._DISCARDED:
                    records.append(bytes(self._data[at + 8 : at + 8 + length]))
                position += (length + 15) & ~7
            self._consumer[0] = position
        return records

    def close(self) -> None:
        """Twice is fine."""
        self._fd = -1
        self._opened.close()

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def call(command: int, attributes: bytes, what: str) -> int:
    """bpf(2) with those attributes (union bpf_attr); `what` it is about is told in errors."""
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)), what)


def _call(
    command: int, attr: ctypes.Array[ctypes.c_char], what: str, *, also: int | None = None
) -> int:
    """The same with attributes that are answered in place; negative where it fails with `also`."""
    number = _CALL_NUMBER.get(platform.machine())
    if number is None or sys.maxsize < 1 << 32:  # A program of 32 bits has other numbers.
        raise UnsupportedError(f"eBPF is not used on {platform.machine()} machines")
    done: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), attr, ctypes.c_ulong(len(attr))
    )
    errno = ctypes.get_errno()
    if done >= 0 or errno == also:
        return done
    text = f"eBPF {what}: {os.strerror(errno)}"
    if errno == EPERM:
        raise UnsupportedError(text, remedy="run as root, or with CAP_BPF and CAP_PERFMON")
    if errno in _NOT_HERE:
        raise UnsupportedError(text, remedy="use Linux 5.17 or newer with CONFIG_BPF_EVENTS")
    raise KernelError(text, errno=errno)


def _locked_down() -> bool:
    """Whether even root may not read the kernel's memory (kernel_lockdown(7))."""
    try:
        return "[confidentiality]" in LOCKDOWN.read_text()
    except OSError:
        return False
