"""Every error that Podwire raises on purpose, in one tree.

What lives here: the exception classes and nothing else. Each says what went wrong, where, and
(`remedy`) what the person can do about it; the command line prints the two on separate lines.
Anything that escapes and is not a `PodwireError` is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PodwireError(Exception):
    """Root of the tree. `remedy` is an imperative sentence for the person, or None."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class InputError(PodwireError):
    """Something that came from outside is wrong. `field` is its path there (`spec.podCIDR`)."""

    def __init__(self, message: str, *, field: str, remedy: str | None = None) -> None:
        super().__init__(f"{field}: {message}", remedy=remedy)
        self.field = field


class UnsupportedError(PodwireError):
    """This machine or kernel lacks something that the request needs."""


class KernelError(PodwireError):
    """The kernel refused an operation. `errno` is the positive error number."""

    def __init__(self, message: str, *, errno: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno


class AgentAwayError(PodwireError):
    """A node's agent can't be reached, or went away while it was asked."""


class IpamError(PodwireError):
    """An address could not be allocated, honoured or released."""


class UnwritableError(IpamError):
    """The disk of the address database takes no writes: it is full, read-only, or fails."""


class LabError(PodwireError):
    """A lab could not be made, found or taken down."""


class ApiUnavailableError(PodwireError):
    """The Kubernetes API cannot be reached at all."""


class ApiError(PodwireError):
    """The Kubernetes API answered with a `Status` of failure.

    `status` is the HTTP code, `reason` the machine-readable word (`NotFound`), `details` the
    object of that name (its `causes` carry field paths), empty where the server sent none.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.reason = reason
        self.details = dict(details or {})


class NotFoundError(ApiError):
    """404: the object or the resource type does not exist."""


class ConflictError(ApiError):
    """409 `Conflict`: the object changed since it was read."""


class AlreadyExistsError(ApiError):
    """409 `AlreadyExists`: an object of that name is there."""


class GoneError(ApiError):
    """410: the resourceVersion asked for has been compacted; list again."""


class ForbiddenError(ApiError):
    """401 or 403: no valid credentials, or not allowed."""


class InvalidError(ApiError):
    """422: the object was understood and is wrong; `details["causes"]` names the fields."""


class StoreError(PodwireError):
    """The etcd store refused or could not do what it was asked. `code` is gRPC's status code."""

    def __init__(self, message: str, *, code: int = 2, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class StoreUnavailableError(StoreError):
    """The store can't be reached, has no leader, or did not answer in time.

    `may_have_happened`: the request was sent, so a change in it may have been made nevertheless.
    """

    def __init__(
        self, message: str, *, remedy: str | None = None, may_have_happened: bool = False
    ) -> None:
        super().__init__(message, code=14, remedy=remedy)
        self.may_have_happened = may_have_happened


class StoreForbiddenError(StoreError):
    """The store wants a user, another password, or other permissions."""


class StoreCompactedError(StoreError):
    """The store no longer knows the revision asked for, or never did; list again."""
