"""Bodies and media types: what a client sends, and in which form it wants the answer.

What lives here: reading JSON and YAML bodies, and the `Accept` header, in which Kubernetes also
asks for transformations (`application/json;as=Table;v=v1;g=meta.k8s.io`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from podwire.decoding import from_json
from podwire.lab.api import status

BODY_LIMIT = 3 * 1024 * 1024
"""The largest body, in bytes, as kube-apiserver has it."""

JSON = "application/json"
YAML = "application/yaml"


class Form(NamedTuple):
    """How to answer: `transform` is "", Table or PartialObjectMetadata(List)."""

    transform: str = ""
    yaml: bool = False


def accepted_form(header: str) -> Form:
    """The first form in an Accept header that can be made; raises `ApiError` 406."""
    if not header.strip():
        return Form()
    for offer in header.split(","):
        media, *parameters = (part.strip() for part in offer.split(";"))
        given = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media not in (JSON, YAML, "application/*", "*/*"):
            continue
        transform = given.get("as", "")
        known = transform in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")
        if transform and not (known and given.get("g") == "meta.k8s.io"):
            continue
        if transform and given.get("v") not in ("v1", "v1beta1"):
            continue
        return Form(transform, media == YAML)
    raise status.not_acceptable()


async def read_object(request: web.BaseRequest) -> dict[str, Any]:
    """The object in the body; raises `ApiError` 400, 413 or 415."""
    body = await read_value(request, (JSON, YAML))
    if not isinstance(body, dict):
        raise status.bad_request("the body of the request must be an object")
    return body


async def read_value(request: web.BaseRequest, accepted: tuple[str, ...]) -> Any:
    """The JSON or YAML value in a body of one of the `accepted` media types."""
    media = request.content_type if "Content-Type" in request.headers else JSON
    if media not in accepted:
        raise status.unsupported_media_type(media, list(accepted))
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise status.too_large(BODY_LIMIT) from None
    return _from_yaml(raw) if media.endswith("yaml") else _from_json(raw)


def _from_json(raw: bytes) -> Any:
    try:
        return from_json(raw, object)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"the body of the request is not JSON: {error}") from None


def _from_yaml(raw: bytes) -> Any:
    # Here, as PyYAML costs start-up time and few clients send YAML.
    from podwire.lab.api import yaml_body

    try:
        return yaml_body.load(raw)
    except ValueError as error:
        raise status.bad_request(f"the body of the request is not YAML: {error}") from None


def to_yaml(value: Any) -> bytes:
    """A JSON value as YAML."""
    from podwire.lab.api import yaml_body

    return yaml_body.dump(value)
