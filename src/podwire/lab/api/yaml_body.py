"""YAML as Kubernetes reads it: a way to write JSON.

Times stay strings, keys become strings, and aliases are refused: with them a short text could stand
for gigabytes. Apart from `negotiation` so that PyYAML is imported only when someone sends YAML.
"""

from __future__ import annotations

from typing import Any

import yaml

from podwire.decoding import check_yaml

_TIME = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way to configure a loader)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIME]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def load(raw: bytes) -> Any:
    """The value of the one document in `raw`; raises ValueError."""
    try:
        check_yaml(raw, _Loader, aliases=False)
        return _as_json(yaml.load(raw, Loader=_Loader))  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump(value: Any) -> bytes:
    """`value` in block style."""
    text = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    return str(text).encode()


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__} has no place in JSON")


def _key(name: Any) -> str:
    if isinstance(name, bool):
        return "true" if name else "false"
    return str(name)
