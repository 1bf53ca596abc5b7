"""Durations on the command line, and options that are handed on."""

import click
import pytest

from podwire.cli.lab_shape import chosen_shape
from podwire.cli.options import DURATION, Interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("2h", 7200), ("500ms", 0.5), ("1.5s", 1.5), ("15", 15), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1x", "s", "1m 30s", "-5s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["nan", "0", "inf", "often"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Interval(0.1, 60).convert(text, None, None)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--masquerades", "No such option"),
        ("nonsense", "is no option"),
        ("--run-dir=/tmp", "--run-dir is for the lab to say"),
        ("--profile=calico", "--profile is about the lab"),
        ("--no-gbp", "--gbp is about the lab"),
    ],
)
def test_agents_options_that_a_lab_cant_hand_on_are_refused(option: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=words):
        chosen_shape({"agent_options": (option,)})


def test_agents_options_are_handed_on() -> None:
    made = chosen_shape({"agent_options": ("--no-masquerade --log-level=debug",)})
    assert made is not None
    assert made.agent_options == ("--no-masquerade", "--log-level=debug")
