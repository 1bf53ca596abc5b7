"""Which CNI error code each failure gets, and what namespaces a pod can't be wired in."""

from __future__ import annotations

import errno
import os

from podwire.cni import wiring
from podwire.cni.types import CniError, Code
from podwire.errors import (
    ApiUnavailableError,
    IpamError,
    KernelError,
    PodwireError,
    StoreUnavailableError,
)
from podwire.ipam.node_subnet import ContendedError, ExhaustedError, RequestedAddressError
from podwire.kernel import netns

#: The kernel can do it, only not now: something that the agent is about to make is missing.
_TRANSIENT = {errno.ENODEV, errno.EBUSY, errno.ENOBUFS, errno.EAGAIN}


def as_cni_error(error: Exception) -> CniError:
    """The error object that stands for `error`; what is not a PodwireError is a bug."""
    details = error.remedy or "" if isinstance(error, PodwireError) else ""
    match error:
        case CniError():
            return error
        case ExhaustedError():
            code = Code.ADDRESSES_EXHAUSTED
        case RequestedAddressError():
            code = Code.ADDRESS_REFUSED
        case ContendedError():
            code = Code.TRY_AGAIN_LATER
        case IpamError():
            code = Code.STORE_FAILED
        case KernelError(errno=errno.EEXIST):
            code = Code.INTERFACE_EXISTS
        case KernelError() if error.errno in _TRANSIENT:
            code = Code.TRY_AGAIN_LATER
        case KernelError():
            code = Code.KERNEL_REFUSED
        case StoreUnavailableError() | ApiUnavailableError():
            code = Code.TRY_AGAIN_LATER
        case PodwireError():
            code = Code.IO_FAILURE
        case _:
            return CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
    return CniError(code, error.message, details)


def netns_error(path: str, netns_fd: int | None, netns_errno: int) -> CniError | None:
    """Why a pod can't be wired in this namespace; None where it can."""
    if netns_fd is None:
        # ENOENT and ENOTDIR: the container is gone, and there is nothing to clean up either.
        gone = netns_errno in (errno.ENOENT, errno.ENOTDIR)
        code = Code.UNKNOWN_CONTAINER if gone else Code.INVALID_ENVIRONMENT
        why = os.strerror(netns_errno) if netns_errno else "was not handed over"
        return CniError(code, f"CNI_NETNS: {path}: {why}")
    if not netns.is_netns(netns_fd):
        return CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS: {path} is not a network namespace")
    if wiring.is_own_netns(netns_fd):
        return CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS: {path} is the node's own network namespace, not a pod's",
        )
    return None
