"""The installed `podwire` command, as a person runs it, or in this process, which is quicker."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from podwire.cli.main import podwire

PODWIRE = Path(sys.executable).with_name("podwire")


@dataclass(frozen=True)
class Command:
    """`podwire`, with PODWIRE_LAB set to a lab."""

    lab: str

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PODWIRE), *arguments],
            input=stdin,
            env={**os.environ, "PODWIRE_LAB": self.lab},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run it, which has to succeed; its output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    def here(self, *arguments: str) -> Result:
        """Run it in this process: to start another takes longer than most commands."""
        return CliRunner().invoke(podwire, ["--lab", self.lab, *arguments])

    def field(self, pod: str, path: str) -> str:
        """A field of a pod, by its JSONPath."""
        return self.ok("get", "pod", pod, "-o", f"jsonpath={{{path}}}").strip()
