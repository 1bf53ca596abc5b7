"""Filters in tcpdump's words (pcap-filter(7)), compiled by libpcap.

What lives here: the way from the text to a classic BPF program. What does not: the language; it is
libpcap's, and so are its messages about what is wrong with a filter. Names of hosts and services
in a filter are looked up by the library, where this process runs, which may take its time.

libpcap compiles for one link type. A tap on all the interfaces of a namespace sees frames with
and without link headers, so `compile_for_all` puts two programs behind one question:

    hatype == Ethernet or loopback ── yes ─▶ program for Ethernet
                                   └─ no ──▶ program for bare IP
"""

from __future__ import annotations

import ctypes
import functools
import threading

from podwire.errors import InputError, UnsupportedError
from podwire.kernel.observe import cbpf
from podwire.kernel.observe.cbpf import Insn
from podwire.kernel.observe.frames import ETHERNET, LOOPBACK

_DLT_ETHERNET, _DLT_RAW = 1, 12  # pcap/dlt.h
_NETMASK_UNKNOWN = 0xFFFFFFFF
_SNAPLEN = 262144
_REMEDY = "see pcap-filter(7), or try it with tcpdump -d"

#: One at a time: the parser of libpcap before 1.8 keeps its state in globals.
_compiling = threading.Lock()


class _Program(ctypes.Structure):
    """struct bpf_program; the instructions are those of a socket filter."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(ctypes.c_uint64)))


def compile_filter(text: str, link_type: int) -> tuple[Insn, ...]:
    """The program for devices of a link type: ARPHRD_ETHER, ARPHRD_LOOPBACK, or any other, whose
    packets then have no link header. Empty text lets everything through.

    Raises InputError with libpcap's message, and UnsupportedError where there is no libpcap.
    """
    library = _libpcap()
    if "\0" in text:
        raise InputError("a character in it is no text (NUL)", field="FILTER", remedy=_REMEDY)
    dlt = _DLT_ETHERNET if link_type in (ETHERNET, LOOPBACK) else _DLT_RAW
    program = _Program()
    with _compiling:
        handle = library.pcap_open_dead(dlt, _SNAPLEN)
        try:
            failed = library.pcap_compile(
                handle,
                ctypes.byref(program),
                text.encode(errors="surrogateescape"),
                1,
                _NETMASK_UNKNOWN,
            )
            if failed:
                message = library.pcap_geterr(handle).decode(errors="replace")
                raise InputError(f"{text!r}: {message}", field="FILTER", remedy=_REMEDY)
            size = program.length * ctypes.sizeof(ctypes.c_uint64)
            code = ctypes.string_at(program.instructions, size)
            library.pcap_freecode(ctypes.byref(program))
        finally:
            library.pcap_close(handle)
    return _checked(text, cbpf.unpack(code))


def compile_for_all(text: str) -> tuple[Insn, ...]:
    """The program for a tap on devices of any link type. A filter that asks for what only
    Ethernet has lets nothing through from the others.

    Raises as `compile_filter` does.
    """
    ethernet = compile_filter(text, ETHERNET)
    try:
        bare = compile_filter(text, 0)
    except InputError:
        bare = (Insn(cbpf.RET, 0, 0, 0),)
    # libpcap's programs jump relative to where they are, so they stand one behind the other.
    return _checked(
        text,
        (
            Insn(cbpf.LD | cbpf.HALF | cbpf.ABS, 0, 0, cbpf.AD_HATYPE & 0xFFFFFFFF),
            Insn(cbpf.JMP | cbpf.JEQ, 2, 0, ETHERNET),
            Insn(cbpf.JMP | cbpf.JEQ, 1, 0, LOOPBACK),
            Insn(cbpf.JMP | cbpf.JA, 0, 0, len(ethernet)),
            *ethernet,
            *bare,
        ),
    )


def _checked(text: str, program: tuple[Insn, ...]) -> tuple[Insn, ...]:
    if len(program) > cbpf.MAX_INSTRUCTIONS:
        raise InputError(
            f"{text[:60]!r}… takes {len(program)} instructions, and the kernel takes"
            f" {cbpf.MAX_INSTRUCTIONS}",
            field="FILTER",
            remedy="use a net instead of many hosts, or a range instead of many ports",
        )
    return program


@functools.cache
def _libpcap() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libpcap.so.0.8")
    except OSError:
        try:
            library = ctypes.CDLL("libpcap.so.1")  # its name outside of Debian
        except OSError as error:
            raise UnsupportedError(
                "libpcap is not installed, which compiles filters",
                remedy="apt-get install libpcap0.8",
            ) from error
    library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_compile.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(_Program),
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    ]
    library.pcap_geterr.argtypes = [ctypes.c_void_p]
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
    library.pcap_close.argtypes = [ctypes.c_void_p]
    return library
