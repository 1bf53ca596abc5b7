"""Fixtures that make real network namespaces, and take them away again whatever happens; and the
settings of pytest and Hypothesis for all tests."""

from __future__ import annotations

import gc
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import settings

from podwire.kernel import netns
from podwire.lab.programs import NO_AUTHORITIES
from tests import parallel

# Of the processes that tests start: none has to do with an authority of the system's.
os.environ["SSL_CERT_FILE"] = NO_AUTHORITIES

# The same few examples in every run: what passed once passes again, and a failure is of the change.
# `--hypothesis-profile explore` looks for new ones. A machine that stalls is no failure.
settings.register_profile("podwire", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("podwire")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info < (3, 11, 5):
        # Such a Python sometimes can't parse a source to quote from it (gh-106905, "AST constructor
        # recursion depth mismatch"), and one failure ended the whole run.
        config.option.tbstyle = "native"
    if hasattr(config, "workerinput"):
        parallel.shorten_basetemp(config)
        config.pluginmanager.register(parallel.Worker())
    elif config.getoption("dist", "no") != "no":
        config.pluginmanager.register(parallel.Controller())
    # What thousands of tests are made of stays to the end: garbage need not be looked for in it.
    gc.disable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parallel.dearest_first(items, config.rootpath)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _kubectl_minor() -> int:
    """NN of the kubectl 1.NN that is installed, 0 without one."""
    if shutil.which("kubectl") is None:
        return 0
    command = ["kubectl", "version", "--client", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        minor: str = json.loads(done.stdout)["clientVersion"]["minor"]
    except (ValueError, KeyError):
        return 0
    return int(minor.rstrip("+"))


#: Debian 12's own kubectl (1.20) asks for OpenAPI v2, which the embedded API does not serve.
needs_kubectl = pytest.mark.skipif(
    _kubectl_minor() < 27, reason="kubectl 1.27 or newer is not installed"
)


@dataclass(frozen=True)
class Namespace:
    """A named network namespace: `run` runs a shell line in it and returns what it printed."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, line: str, *, check: bool = True) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, "sh", "-c", line],
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {line}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout


@contextmanager
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces with unique names, `lo` up; they are deleted when the block ends."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root (sudo script/test)")
    made: list[Namespace] = []

    def make() -> Namespace:
        one = Namespace(f"pwt-{secrets.token_hex(4)}")
        subprocess.run(["ip", "netns", "add", one.name], check=True)
        made.append(one)
        subprocess.run(["ip", "-n", one.name, "link", "set", "lo", "up"], check=True)
        return one

    try:
        yield make
    finally:
        for one in made:
            subprocess.run(["ip", "netns", "del", one.name], check=False)


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces, which are deleted when the test ends."""
    with namespaces() as make:
        yield make


@pytest.fixture
def namespace(make_namespace: Callable[[], Namespace]) -> Namespace:
    """One namespace."""
    return make_namespace()


@pytest.fixture
def inside(namespace: Namespace) -> Iterator[Namespace]:
    """One namespace that the test itself is in."""
    fd = netns.open_netns(namespace.path)
    try:
        with netns.entered(fd):
            yield namespace
    finally:
        os.close(fd)
