"""From a Kubernetes `Status` to the error that Podwire raises.

Source: `Status` and `StatusReason*` of k8s.io/apimachinery/pkg/apis/meta/v1. A body that is no
Status (a proxy's error page) still becomes an `ApiError`, with the start of what it said.
"""

from __future__ import annotations

from typing import Any

import msgspec

from podwire.decoding import from_json
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
)

_BY_CODE: dict[int, type[ApiError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
}
_REASON_BY_CODE = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_EXCERPT_CHARS = 300


class Status(msgspec.Struct):
    """What an API server answers in place of an object."""

    kind: str = ""
    status: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: dict[str, Any] | None = None


def error_from_status(status: Status) -> ApiError:
    """The typed error for a `Status` of failure."""
    kind = _BY_CODE.get(status.code, ApiError)
    if status.code == 409 and status.reason == "AlreadyExists":
        kind = AlreadyExistsError
    reason = status.reason or _REASON_BY_CODE.get(status.code, "Unknown")
    message = status.message or reason
    return kind(status.code, reason, message, status.details, remedy=_remedy(status.code))


def error_from_body(code: int, body: bytes) -> ApiError:
    """The typed error for an HTTP answer of `code` (400 and up) with `body`."""
    try:
        status = from_json(body, Status)
    except msgspec.DecodeError:
        status = Status()
    if status.kind != "Status":
        excerpt = " ".join(body.decode(errors="replace").split())[:_EXCERPT_CHARS]
        status = Status(message=excerpt or f"the server answered HTTP {code} without a reason")
    if not status.code:
        status.code = code
    return error_from_status(status)


def _remedy(code: int) -> str | None:
    if code == 401:
        return "check the token or client certificate in the kubeconfig"
    return None
