"""Reading manifests: files, directories and standard input into objects, checked for their shape.

What is checked here is what no server needs to be asked for: YAML or JSON, `apiVersion`, `kind`,
`metadata`. Every problem names the file, the document in it (counted from 1) and the field, and
all are collected, so that a person mends them in one go.

YAML is read as Kubernetes reads it: a key twice is an error, and dates and `12:30` are text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from podwire.decoding import check_yaml
from podwire.errors import PodwireError

Command = TypeVar("Command", bound=Callable[..., Any])

_SUFFIXES = (".json", ".yaml", ".yml")
_STANDARD_INPUT = "-"


def filename_option(*, required: bool) -> Callable[[Command], Command]:
    """The option `-f`, repeatable; its value goes to `load`."""
    return click.option(
        "-f",
        "--filename",
        "filenames",
        multiple=True,
        required=required,
        metavar="FILE|DIR|-",
        help="Manifest, directory of manifests, or - for standard input. Repeatable.",
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object and where it was written."""

    origin: str
    object: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.object["metadata"]["name"]
        return name

    @property
    def namespace(self) -> str | None:
        namespace: str | None = self.object["metadata"].get("namespace")
        return namespace

    def wrong(self, field: str, message: str) -> str:
        """A line for a person: where, which field, what."""
        return f"{self.origin}: {field}: {message}"


class ManifestError(PodwireError):
    """One or more manifests are wrong; the message has a line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))


def load(filenames: Iterable[str]) -> list[Manifest]:
    """The objects of all `filenames` in order, those of a `List` one by one.

    Raises `ManifestError` with every problem found, `PodwireError` for a file that cannot be read.
    """
    manifests: list[Manifest] = []
    problems: list[str] = []
    for name, text in _texts(filenames):
        try:
            check_yaml(text, _Loader)
            documents = list(yaml.load_all(text, Loader=_Loader))
        except yaml.YAMLError as error:
            problems.append(f"{name}: {_yaml_problem(error)}")
            continue
        for number, document in enumerate(documents, start=1):
            if document is not None:
                origin = f"{name}: document {number}" if len(documents) > 1 else name
                for manifest in _expand(Manifest(origin, document)):
                    manifests.append(manifest)
                    problems += _problems(manifest)
    if problems:
        raise ManifestError(problems)
    if not manifests:
        raise PodwireError(f"no objects in {', '.join(filenames)}")
    return manifests


def _texts(filenames: Iterable[str]) -> Iterator[tuple[str, str]]:
    for filename in filenames:
        if filename == _STANDARD_INPUT:
            yield "standard input", sys.stdin.read()
        elif filename.startswith(("http://", "https://")):
            raise PodwireError(
                f"{filename}: manifests are read from files only",
                remedy=f"curl -fsSL {filename} | podwire apply -f -",
            )
        else:
            yield from ((str(path), _read(path)) for path in _files(Path(filename)))


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise PodwireError(f"{path}: no {', '.join(_SUFFIXES)} file in this directory")
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise PodwireError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PodwireError(f"{path}: not a text file in UTF-8") from None


def _expand(manifest: Manifest) -> Iterator[Manifest]:
    """The objects in a `List`, or the object itself."""
    document = manifest.object
    items = document.get("items") if isinstance(document, dict) else None
    is_list = isinstance(document, dict) and str(document.get("kind", "")).endswith("List")
    if is_list and isinstance(items, list):
        for index, item in enumerate(items):
            yield from _expand(Manifest(f"{manifest.origin}: items[{index}]", item))
    else:
        yield manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    document = manifest.object
    if not isinstance(document, dict):
        yield f"{manifest.origin}: expected an object, got {_kind_of(document)}"
        return
    for field in ("apiVersion", "kind"):
        value = document.get(field)
        if not isinstance(value, str) or not value:
            yield manifest.wrong(field, _expected("a string", value))
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        yield manifest.wrong("metadata", _expected("an object", metadata))
        return
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        yield manifest.wrong("metadata.name", _expected("a string", name))
    namespace = metadata.get("namespace")
    if namespace is not None and not isinstance(namespace, str):
        yield manifest.wrong("metadata.namespace", _expected("a string", namespace))
    for field in ("labels", "annotations"):
        yield from _text_map_problems(manifest, f"metadata.{field}", metadata.get(field))


def _text_map_problems(manifest: Manifest, field: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield manifest.wrong(field, _expected("an object", value))
        return
    for key, text in value.items():
        if not isinstance(text, str):
            yield manifest.wrong(f"{field}[{key}]", _expected("a string (quote it)", text))


def _expected(expected: str, value: Any) -> str:
    return "required" if value in (None, "") else f"expected {expected}, got {_kind_of(value)}"


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "nothing" if value is None else names.get(type(value), f"the number {value}")


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected a string as key, got {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where 12:30 is the number 750 and 2024-01-01 a date; Kubernetes does not.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
    ]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
