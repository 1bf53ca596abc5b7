"""Kubernetes `Status` objects: every refusal that the server can give, spelled in one place.

What lives here: makers of `ApiError`s with the message and reason that Kubernetes uses, and the
JSON form. Source: k8s.io/apimachinery/pkg/api/errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
)

if TYPE_CHECKING:
    from podwire.lab.api.registry import ResourceKind
    from podwire.lab.api.schema import Causes


def _details(kind: ResourceKind, name: str) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name, "kind": kind.plural}
    if kind.group:
        details["group"] = kind.group
    return {key: value for key, value in details.items() if value}


def to_json(error: ApiError) -> dict[str, Any]:
    """The Status object of a failure."""
    failure: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "code": error.status,
    }
    if error.details:
        failure["details"] = error.details
    return failure


def success(kind: ResourceKind, name: str, uid: str) -> dict[str, Any]:
    """The Status object that answers a deletion."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**_details(kind, name), "uid": uid},
    }


def bad_request(message: str) -> ApiError:
    """400: the request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def unauthorized(message: str = "Unauthorized") -> ApiError:
    """401: no or wrong credentials."""
    return ForbiddenError(401, "Unauthorized", message)


def forbidden(kind: ResourceKind, name: str, why: str) -> ApiError:
    """403: understood, and not done."""
    message = f'{kind.resource} "{name}" is forbidden: {why}'
    return ForbiddenError(403, "Forbidden", message, _details(kind, name))


def no_such_path() -> ApiError:
    """404 for a path that is no resource."""
    return NotFoundError(404, "NotFound", "the server could not find the requested resource")


def not_found(kind: ResourceKind, name: str) -> ApiError:
    """404 for an object."""
    message = f'{kind.resource} "{name}" not found'
    return NotFoundError(404, "NotFound", message, _details(kind, name))


def method_not_allowed(message: str) -> ApiError:
    """405: the resource does not support the verb."""
    return ApiError(405, "MethodNotAllowed", message)


def not_acceptable() -> ApiError:
    """406: none of the media types asked for can be made."""
    message = "only the following media types are accepted: application/json, application/yaml"
    return ApiError(406, "NotAcceptable", message)


def already_exists(kind: ResourceKind, name: str) -> ApiError:
    """409 on create."""
    message = f'{kind.resource} "{name}" already exists'
    return AlreadyExistsError(409, "AlreadyExists", message, _details(kind, name))


def conflict(kind: ResourceKind, name: str, why: str) -> ApiError:
    """409 on a stale update or an unmet precondition."""
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return ConflictError(409, "Conflict", message, _details(kind, name))


def expired(revision: int, oldest: int) -> ApiError:
    """410: that resourceVersion is no longer known; the client must list again."""
    return GoneError(410, "Expired", f"too old resource version: {revision} ({oldest})")


def too_large(limit: int) -> ApiError:
    """413: the body exceeds the limit, in bytes."""
    message = f"Request entity too large: limit is {limit}"
    return ApiError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(given: str, supported: list[str]) -> ApiError:
    """415: the body has a form that this verb does not take."""
    message = (
        "the body of the request was in an unknown format"
        f' "{given}" - accepted media types include: {", ".join(supported)}'
    )
    return ApiError(415, "UnsupportedMediaType", message)


def invalid(kind: ResourceKind, name: str, causes: Causes) -> ApiError:
    """422: the object is wrong; every cause names a field."""
    qualified = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    faults = [f"{cause['field']}: {cause['message']}" for cause in causes.found]
    summary = faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
    details = {**_details(kind, name), "kind": kind.kind, "causes": causes.found}
    message = f'{qualified} "{name}" is invalid: {summary}'
    return InvalidError(422, "Invalid", message, details)


def internal(message: str) -> ApiError:
    """500: a fault on this side."""
    return ApiError(500, "InternalError", f"Internal error occurred: {message}")


def unavailable(message: str) -> ApiError:
    """503: something that the request needs is away just now."""
    return ApiError(503, "ServiceUnavailable", message)


def future_revision(revision: int, newest: int) -> ApiError:
    """504: that resourceVersion has not happened yet."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    }
    message = f"Too large resource version: {revision}, current: {newest}"
    return ApiError(504, "Timeout", message, {**details, "retryAfterSeconds": 1})
