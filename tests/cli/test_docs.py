"""The documentation against the code: cheap checks that keep it true.

What is checked: command lines parse, links lead somewhere, and reference pages are complete. That
their words are right, only a reader can tell.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
import yaml

from podwire.agent import metrics
from podwire.cli.context import Target
from podwire.cli.main import COMMANDS, podwire
from podwire.cni.types import Code
from podwire.trace.model import Cause

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
REFERENCE = DOCS / "reference"

#: Commands whose page is not named after them.
_OBJECT_VERBS = ("apply", "get", "describe", "delete", "wait", "exec", "logs")
#: Options that every command on objects has; the page of `podwire` itself has them.
_GENERAL = {"--lab", "--kubeconfig", "--help", "--version"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_SHELL_OPERATORS = frozenset({"|", "||", "&&", "&", ";", "<", ">", ">>", "2>"})


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    return ((match[1], match[2]) for match in _FENCE.finditer(text))


def command_lines(text: str) -> Iterator[str]:
    """The shell lines in `sh` blocks, and those behind a prompt in `console` blocks."""
    for language, body in blocks(text):
        if language == "sh":
            yield from _outside_heredocs(body)
        elif language == "console":
            yield from (line[2:] for line in body.splitlines() if line.startswith("$ "))


def _outside_heredocs(body: str) -> Iterator[str]:
    end = None
    for line in body.splitlines():
        if end is None:
            yield line
            found = re.search(r"<<-?'?(\w+)'?", line)
            end = found[1] if found else None
        elif line.strip() == end:
            end = None


def invocations(line: str) -> Iterator[list[str]]:
    """The arguments of each `podwire …` in a line, in substitutions too."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from invocations(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _SHELL_OPERATORS:
            words.append(word)
            continue
        while words and (words[0] == "sudo" or re.fullmatch(r"\w+=.*", words[0])):
            words.pop(0)
        if words and Path(words[0]).name == "podwire":
            yield words[1:]
        words = []


def parse(arguments: list[str]) -> None:
    """Parse a command line as the real one is, down to the last subcommand; nothing is run.

    Raises click.UsageError where it would.
    """
    context = podwire.make_context("podwire", list(arguments), obj=Target())
    while isinstance(group := context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        if group.invoke_without_command and not rest:
            return
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None
        try:
            context = command.make_context(name, rest, parent=context)
        except click.BadParameter as error:
            if "does not exist" not in error.message:  # A file of the reader's, not ours.
                raise
            return
        except click.exceptions.Exit:
            return  # --help


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, without groups that do nothing by themselves."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for sub, child in command.commands.items():
                yield from walk(f"{name} {sub}", child)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command

    for name, (target, _) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        yield from walk(name, getattr(importlib.import_module(module), attribute))


def page_of(command: str) -> Path:
    verb = command.split()[0]
    return REFERENCE / f"podwire-{'objects' if verb in _OBJECT_VERBS else verb}.md"


def options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text())
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in _HEADING.findall(text)
    }


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_commands_in_the_docs_parse(page: Path) -> None:
    wrong = []
    for line in command_lines(page.read_text()):
        for arguments in invocations(line):
            try:
                parse(arguments)
            except click.UsageError as error:
                wrong.append(f"{line}: {error.format_message()}")
    assert not wrong


def test_wrong_commands_are_found() -> None:
    line = 'x="$(podwire get pod a --nonsense)" && sudo .venv/bin/podwire lab upp | cat'
    for arguments in invocations(line):
        with pytest.raises(click.UsageError):
            parse(arguments)
    assert len(list(invocations(line))) == 2


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / link).resolve() for link in _LINK.findall(index.read_text())}
    assert not [id_of(page) for page in DOCS.rglob("*.md") if page != index and page not in linked]


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_reference_has_every_command_and_option(name: str, command: click.Command) -> None:
    text = page_of(name).read_text()
    assert f"podwire {name}" in text
    assert not [option for option in options(command) - _GENERAL if option not in text]


def test_reference_has_every_cni_error_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", (REFERENCE / "podwire-cni.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in Code]


def test_troubleshooting_has_a_section_for_every_cause() -> None:
    text = (DOCS / "guide/troubleshooting.md").read_text()
    assert [cause for cause in Cause if f"\n### {cause}\n" not in text] == []


def test_pictures_are_used_and_have_nothing_from_outside() -> None:
    used = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in _LINK.findall(page.read_text())
        if link.endswith(".svg")
    }
    pictures = set((DOCS / "images").glob("*.svg"))
    assert pictures == used
    for picture in pictures:
        text = picture.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert ElementTree.fromstring(text) is not None
        assert "http" not in text


def test_reference_has_every_metric() -> None:
    text = (REFERENCE / "podwire-agent.md").read_text()
    source = Path(metrics.__file__).read_text()
    documented = set(re.findall(r"^\| `(podwire_\w+)`", text, re.MULTILINE))
    assert documented == set(re.findall(r'"(podwire_\w+)"', source))


def test_manifest_for_a_cluster_gives_the_agent_what_it_needs() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/podwire.yaml").read_text()))
    by_kind = {document["kind"]: document for document in documents}
    rights = {
        (resource, verb)
        for rule in by_kind["ClusterRole"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {
        *(("nodes", verb) for verb in ("get", "list", "watch", "patch")),
        ("nodes/status", "patch"),
        *(("pods", verb) for verb in ("get", "list", "watch")),
        *(
            (kind, verb)
            for kind in ("ippools", "ipamblocks", "ipamranges")
            for verb in ("get", "list", "watch", "create", "update", "delete")
        ),
    }
    pod = by_kind["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    parse(container["args"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
