"""An etcd of three members, as it is run where it matters: with TLS, client certificates and users.

All members are in one namespace, at one address of the underlay, on ports of their own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cluster.etcd.authority import Authority
from ..conftest import Namespace
from .waiting import DEADLINE_S, until

USER, PASSWORD = "podwire", "correct horse"
_ROOT = "root:of all"


class EtcdCluster:
    """The members are numbered from 0; client port 2379 + 10 × number, the next one for peers."""

    def __init__(self, namespace: Namespace, directory: Path, address: str, prefix: str) -> None:
        directory.mkdir()
        self.prefix = prefix
        self._namespace = namespace
        self._directory = directory
        self._address = address
        self._authority = Authority(directory / "tls", address)
        # The gateway is a client of its own server, with the server's certificate.
        self._server = self._authority.issue("server", "serverAuth,clientAuth")
        # With users, the gateway takes no certificate that has a common name.
        self._client = self._authority.issue("client", "clientAuth", "/O=podwire")
        self._password = directory / "password"
        self._password.write_text(PASSWORD + "\n")
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        self._who: list[str] = []

    @property
    def store(self) -> str:
        """What an agent is told."""
        certificate, key = self._client
        hosts = ",".join(f"{self._address}:{self._port(number)}" for number in range(3))
        files = f"ca={self._authority.ca}&cert={certificate}&key={key}"
        return f"etcd://{USER}@{hosts}{self.prefix}?{files}&password-file={self._password}"

    def start(self, *numbers: int) -> None:
        """Start members, all where none is named, and wait until they serve."""
        for number in numbers or range(3):
            self._spawn(number)
        self.ctl("get", "nothing")

    def kill(self, *numbers: int) -> None:
        """Kill members, all where none is named."""
        for number in numbers or range(3):
            process = self._members.pop(number)
            process.kill()
            process.wait(DEADLINE_S)

    def close(self) -> None:
        if self._members:
            self.kill(*self._members)

    def leader(self) -> int:
        """The number of the member that leads."""
        for number in self._members:
            status = json.loads(self.ctl("endpoint", "status", "-w", "json", member=number))[0]
            if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
                return number
        raise AssertionError("nobody leads")

    def secure(self) -> None:
        """Make the user, who may do below the prefix what it likes, and ask for passwords."""
        for words in (
            ("user", "add", _ROOT),
            ("user", "grant-role", "root", "root"),
            ("role", "add", "network"),
            ("role", "grant-permission", "network", "readwrite", f"{self.prefix}/", "--prefix"),
            ("user", "add", f"{USER}:{PASSWORD}"),
            ("user", "grant-role", USER, "network"),
            ("auth", "enable"),
        ):
            self.ctl(*words)
        self._who = ["--user", _ROOT]

    def ctl(self, *words: str, member: int | None = None) -> str:
        """Run etcdctl, again where that got lost with a leader; what it printed."""
        done: list[subprocess.CompletedProcess[str]] = []

        def is_done() -> bool:
            done[:] = [self._run(words, member)]
            said = done[0].stderr
            return done[0].returncode == 0 or "already" in said or "lease not found" in said

        until(is_done, f"etcdctl {words[0]} {words[1]}: {done}")
        return done[0].stdout

    def _run(
        self, words: Sequence[str], member: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        numbers = [member] if member is not None else list(self._members)
        endpoints = ",".join(self._url(number) for number in numbers)
        certificate, key = self._client
        return subprocess.run(
            [
                *("ip", "netns", "exec", self._namespace.name, "etcdctl"),
                *("--endpoints", endpoints, "--cacert", str(self._authority.ca)),
                *("--cert", str(certificate), "--key", str(key), *self._who, *words),
            ],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            check=False,
        )

    def put(self, key: str, value: object) -> None:
        """Put a key below the prefix; what is no text goes in as JSON."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.ctl("put", f"{self.prefix}/{key}", text)

    def delete(self, key: str) -> None:
        self.ctl("del", f"{self.prefix}/{key}")

    def compact(self) -> None:
        """Forget what has been, up to now."""
        found = json.loads(self.ctl("get", f"{self.prefix}/config", "-w", "json"))
        self.ctl("compact", str(found["header"]["revision"]))

    def leases(self) -> dict[str, dict[str, Any]]:
        """The leases, by the last part of their keys."""
        lines = self.ctl("get", "--prefix", f"{self.prefix}/subnets/").splitlines()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        return {key.rpartition("/")[2]: json.loads(value) for key, value in pairs}

    def expire(self, name: str) -> None:
        """End the etcd lease that keeps the key of a subnet, as its time to live does."""
        found = json.loads(self.ctl("get", f"{self.prefix}/subnets/{name}", "-w", "json"))
        self.ctl("lease", "revoke", f"{found['kvs'][0]['lease']:x}")

    def _port(self, number: int) -> int:
        return 2379 + 10 * number

    def _url(self, number: int) -> str:
        return f"https://{self._address}:{self._port(number)}"

    def _peer_url(self, number: int) -> str:
        return f"http://{self._address}:{self._port(number) + 1}"

    def _spawn(self, number: int) -> None:
        certificate, key = self._server
        peers = ",".join(f"m{one}={self._peer_url(one)}" for one in range(3))
        with (self._directory / f"log{number}").open("ab") as log:
            self._members[number] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._namespace.name, "etcd"),
                    *("--name", f"m{number}", "--data-dir", str(self._directory / f"m{number}")),
                    *("--listen-client-urls", self._url(number)),
                    *("--advertise-client-urls", self._url(number)),
                    *("--listen-peer-urls", self._peer_url(number)),
                    *("--initial-advertise-peer-urls", self._peer_url(number)),
                    *("--initial-cluster", peers),
                    *("--cert-file", str(certificate), "--key-file", str(key)),
                    *("--client-cert-auth", "--trusted-ca-file", str(self._authority.ca)),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                ],
                stdout=log,
                stderr=log,
            )


@contextmanager
def running(
    namespace: Namespace, directory: Path, address: str, prefix: str, config: dict[str, Any]
) -> Iterator[EtcdCluster]:
    """A cluster with a network's configuration; its members end with the block."""
    cluster = EtcdCluster(namespace, directory, address, prefix)
    try:
        cluster.start()
        cluster.secure()
        cluster.put("config", config)
        yield cluster
    finally:
        cluster.close()
