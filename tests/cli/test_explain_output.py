"""How `podwire explain` prints an agent's answer."""

from __future__ import annotations

from podwire.cli.explain import Answer, _lines
from podwire.trace.wire import Explained


def test_what_a_terminal_would_obey_is_shown_escaped() -> None:
    """Links and rules have the names and comments that somebody gave them."""
    evil = "a\x1b]0;owned\x07b"
    explained = Explained(to=1, found=True, text=evil, without=evil, details=(("entry", evil),))
    printed = "".join(_lines(Answer(node="node1", kind="link", thing=evil, explained=explained)))
    assert printed.isprintable()
    assert printed.count("a\\x1b]0;owned\\x07b") == 4
