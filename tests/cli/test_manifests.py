"""Reading manifests: what is accepted, and what is wrong is said with file, document and field."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from podwire.cli.manifests import ManifestError, load
from podwire.errors import PodwireError

POD = "{apiVersion: v1, kind: Pod, metadata: {name: %s}}\n"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def names(*filenames: str) -> list[str]:
    return [manifest.name for manifest in load(filenames)]


def test_documents_lists_and_json(tmp_path: Path) -> None:
    several = write(tmp_path / "a.yaml", POD % "one" + "---\n# nothing\n---\n" + POD % "two")
    json = write(
        tmp_path / "b.json", '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"three"}}'
    )
    listed = write(
        tmp_path / "c.yaml", f"apiVersion: v1\nkind: List\nitems:\n- {POD % 'four'}- {POD % 'five'}"
    )
    assert names(several, json, listed) == ["one", "two", "three", "four", "five"]


def test_a_directory_is_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "2.yml", POD % "two")
    write(tmp_path / "1.yaml", POD % "one")
    write(tmp_path / "readme.md", "no")
    assert names(str(tmp_path)) == ["one", "two"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(POD % "one"))
    assert names("-") == ["one"]


def test_scalars_are_read_as_kubernetes_reads_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
        "data: {date: 2024-01-01, time: 12:30, port: 8080:80, octal: 0644, float: 1e3, "
        "'yes': 'on', version: 1.10.2, hex: 0x1F, negative: -5, point: .5}\n",
    )
    data = load([path])[0].object["data"]
    assert data == {
        "date": "2024-01-01",
        "time": "12:30",
        "port": "8080:80",
        "octal": 0o644,
        "float": 1000.0,
        "yes": "on",
        "version": "1.10.2",
        "hex": 31,
        "negative": -5,
        "point": 0.5,
    }


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: &m {name: a, labels: {x: '1'}}\n"
        "data: {<<: {p: q}, r: s}\nmore: {<<: *m, name: b}\n",
    )
    found = load([path])[0].object
    assert found["data"] == {"p": "q", "r": "s"}
    assert found["more"] == {"name": "b", "labels": {"x": "1"}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: Pod\nmetadata: {name: a}", "apiVersion: required"),
        (
            "apiVersion: v1\nkind: 5\nmetadata: {name: a}",
            "kind: expected a string, got the number 5",
        ),
        ("apiVersion: v1\nkind: Pod", "metadata: required"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", "metadata.name: required"),
        ("apiVersion: v1\nkind: Pod\nmetadata: [a]", "metadata: expected an object, got a list"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {v: 1}}",
            "metadata.labels[v]: expected a string (quote it), got the number 1",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {v: yes}}",
            "metadata.annotations[v]: expected a string (quote it), got a boolean",
        ),
        ("just text", "expected an object, got a string"),
        ("a:\n  " + "[" * 100_000, "line 2, column 202: nested too deeply"),
        ("a: 1\na: 2", "line 2, column 1: 'a' is there twice"),
        ("1: 2", "expected a string as key, got 1"),
        ("a: [", "line 2, column 1: did not find"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ManifestError) as caught:
        load([path])
    assert caught.value.message.startswith(f"{path}: ")
    assert problem in caught.value.message


def test_every_problem_is_told_with_its_document(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", POD % "fine" + "---\nkind: Pod\nmetadata: {}\n---\n[]\n")
    with pytest.raises(ManifestError) as caught:
        load([path])
    assert caught.value.message.splitlines() == [
        f"{path}: document 2: apiVersion: required",
        f"{path}: document 2: metadata.name: required",
        f"{path}: document 3: expected an object, got a list",
    ]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for filename, message in (
        (str(tmp_path / "gone.yaml"), "No such file"),
        (str(tmp_path / "nothing"), "no .json"),
        ("https://example.com/a.yaml", "files only"),
        (write(tmp_path / "empty.yaml", "# nothing\n"), "no objects in"),
    ):
        with pytest.raises(PodwireError, match=message):
            load([filename])
