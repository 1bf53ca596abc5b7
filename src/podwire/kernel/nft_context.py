"""libnftables: nft(8) itself without its process, so what is printed for a person is what runs.

What lives here: running commands, and which names can stand in them. What does not: our own tables,
which are `nft`, and elements of their sets, which go over netlink (`nft_elements`).
"""

from __future__ import annotations

import ctypes
import re
import threading
from contextlib import nullcontext

from podwire.errors import KernelError, UnsupportedError

# nftables/libnftables.h
OUTPUT_STATELESS, OUTPUT_HANDLE = 1 << 2, 1 << 3
_OUTPUT_JSON, _OUTPUT_NUMERIC_PRIORITY, _OUTPUT_TERSE = 1 << 4, 1 << 8, 1 << 11

#: What nft's language has for a name (`string` in its scanner). The kernel takes any text for one.
_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*")

#: What prints the extensions of iptables (libxtables) is not made for two threads at once. JSON
#: leaves them out.
_printing = threading.Lock()


class Nft:
    """A libnftables context, bound to the network namespace of the thread that makes it."""

    def __init__(self, output: int = _OUTPUT_JSON | _OUTPUT_NUMERIC_PRIORITY) -> None:
        """`output` are flags of what commands print: JSON, unless told otherwise."""
        try:
            lib = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise UnsupportedError(
                "libnftables.so.1 is not installed", remedy="apt-get install libnftables1"
            ) from error
        lib.nft_ctx_new.restype = ctypes.c_void_p
        lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_char_p
        lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._lib = lib
        self._output = output
        self._guard = nullcontext() if output & _OUTPUT_JSON else _printing
        self._context = lib.nft_ctx_new(0)
        if not self._context:
            raise UnsupportedError("libnftables could not open a netlink socket")
        lib.nft_ctx_buffer_output(self._context)
        lib.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str, *, terse: bool = False) -> bytes:
        """Run commands as one transaction; their output. Raises KernelError, nothing applied.

        `terse` leaves sets' elements out of what is listed.
        """
        self._lib.nft_ctx_output_set_flags(
            self._context, self._output | (_OUTPUT_TERSE if terse else 0)
        )
        with self._guard:
            failed = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        if failed:
            error = self._lib.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            first = error.splitlines()[0] if error else "unknown error"
            absent = "No such file or directory" in first
            raise KernelError(f"nft: {first.removeprefix('Error: ')}", errno=2 if absent else 22)
        output: bytes = self._lib.nft_ctx_get_output_buffer(self._context)
        return output


def can_be_named(*names: str) -> bool:
    """Whether these names of others' tables and chains can stand in a command.

    Whoever may make a table, also in a pod, chooses its name: without this, new lines, semicolons
    and `include` in one would be commands that run with our rights.
    """
    return all(map(_NAME.fullmatch, names))
