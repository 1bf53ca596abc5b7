"""Nodes and pods of a lab from Python: somewhere to run programs and to ping.

What lives here: the handles that `Lab` gives out; how to wait for objects is `Lab`'s.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from podwire.cluster.kube import PODS
from podwire.errors import LabError
from podwire.lab import enter, nodes
from podwire.lab.control import ProcessStatus
from podwire.lab.kubelet.records import PodRecord
from podwire.lab.registry import NETNS_DIR

if TYPE_CHECKING:
    from podwire.lab.handles import Lab

Json = dict[str, Any]

DEFAULT_TIMEOUT_S = 30.0
_PING_LINE = re.compile(r"ttl=(\d+) time=([\d.]+) ms")
_PING_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) received")


@dataclass(frozen=True, slots=True)
class Ping:
    """What ping(8) found; `ttls` and `times_ms` have an entry for each reply."""

    sent: int
    received: int
    ttls: tuple[int, ...]
    times_ms: tuple[float, ...]
    output: str

    @property
    def lost(self) -> int:
        return self.sent - self.received


class Place:
    """Somewhere in a lab where programs can run: a node or a pod."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """The host's command line that runs `argv` here. Raises LabError when it is not up."""
        raise NotImplementedError

    @property
    def ip(self) -> str:
        raise NotImplementedError

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        check: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end.

        Raises CalledProcessError with `check`, TimeoutExpired.
        """
        return subprocess.run(
            self.command(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout_s,
        )

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program here; `options` are those of Popen. It dies with neither side."""
        defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(argv), **{**defaults, **options})

    def ping(
        self,
        target: Place | str,
        *,
        count: int = 3,
        size: int | None = None,
        dont_fragment: bool = False,
    ) -> Ping:
        """Ping a pod, node or address. `size` is the IP packet's, headers included."""
        address = target if isinstance(target, str) else target.ip
        # All at once: where one was answered, ping(8) waits for the last reply no longer than its
        # interval, and a short one makes a loss of what is only late.
        options = ["-n", "-c", str(count), "-l", str(count), "-i", "1", "-W", "1"]
        if size is not None:
            # 20 or 40 bytes of IP header, 8 of ICMP
            options += ["-s", str(size - (48 if ":" in address else 28))]
        if dont_fragment:
            options += ["-M", "do"]
        output = self.exec(["ping", *options, address]).stdout
        summary = _PING_SUMMARY.search(output)
        replies = _PING_LINE.findall(output)
        return Ping(
            sent=int(summary[1]) if summary else 0,
            received=int(summary[2]) if summary else 0,
            ttls=tuple(int(ttl) for ttl, _ in replies),
            times_ms=tuple(float(time) for _, time in replies),
            output=output,
        )


class LabNode(Place):
    """A node of a lab."""

    def __init__(self, lab: Lab, name: str, ips: tuple[str, ...]) -> None:
        self._lab = lab
        self.name = name
        self._ips = ips

    @property
    def ip(self) -> str:
        """The node's IP on the underlay, the IPv4 one where it has both."""
        return self._ips[0]

    @property
    def ips(self) -> list[str]:
        """The node's IPs on the underlay, one a family."""
        return list(self._ips)

    @property
    def netns(self) -> Path:
        """File of the node's network namespace, on the host."""
        return NETNS_DIR / self._lab.info.netns(self.name)

    @property
    def directory(self) -> Path:
        """The node's disk, on the host; `var-lib` in it is the node's /var/lib."""
        return self._lab.info.node_dir(self.name)

    @property
    def pid(self) -> int:
        """PID, on the host, of a process that is in all of the node's namespaces."""
        holder = nodes.holder(self._lab.info, self.name)
        if holder is None:
            raise LabError(f"{self.name} does not run")
        return holder.pid

    def process(self, name: str) -> ProcessStatus:
        """The node's `agent` or `kubelet`, as the supervisor sees it."""
        return self._lab.process(f"{self.name}/{name}")

    def command(self, argv: Sequence[str]) -> list[str]:
        return enter.node_command(self._lab.info, self.name, argv)

    def __repr__(self) -> str:
        return f"<{self.name} {self.ip} of lab {self._lab.name}>"


class LabPod(Place):
    """A pod of a lab. What needs it to run waits until it is Ready."""

    def __init__(self, lab: Lab, name: str, namespace: str) -> None:
        self._lab = lab
        self.name = name
        self.namespace = namespace

    @property
    def object(self) -> Json:
        """The Pod, as it is now. Raises NotFoundError."""
        return self._lab.get(PODS, self.name, self.namespace)

    @property
    def ip(self) -> str:
        return str(self.wait_ready()["status"]["podIP"])

    @property
    def ips(self) -> list[str]:
        return [entry["ip"] for entry in self.wait_ready()["status"]["podIPs"]]

    @property
    def node(self) -> LabNode:
        """The node that it is bound to."""
        return self._lab.node(self.wait_ready()["spec"]["nodeName"])

    @property
    def pause(self) -> int:
        """PID, in the node's PID namespace, of the process that holds the sandbox."""
        pod = self.wait_ready()
        state = self._lab.node(pod["spec"]["nodeName"]).directory / "var-lib/kubelet/pods"
        record = state / pod["metadata"]["uid"] / "record.json"
        sandbox = msgspec.json.decode(record.read_bytes(), type=PodRecord).sandbox
        if sandbox is None:
            raise LabError(f"pod {self.name} has no sandbox now")
        return sandbox.pid

    def command(self, argv: Sequence[str]) -> list[str]:
        return enter.pod_command(self._lab.info, self.node.name, self.pause, argv)

    def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Json:
        """Wait until the pod is Ready, and return the object. Raises LabError."""
        return self.wait(is_ready, "Ready", timeout_s)

    def wait(
        self, condition: Callable[[Json], bool], what: str, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Json:
        """Wait until `condition` holds of the Pod. Raises LabError that names `what`."""
        return self._lab.wait(PODS, self.name, self.namespace, condition, what, timeout_s)

    def delete(self, *, grace_s: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Delete the pod and wait until it is gone."""
        self._lab.delete_pod(self.name, self.namespace, grace_s, timeout_s)

    def __repr__(self) -> str:
        return f"<pod {self.namespace}/{self.name} of lab {self._lab.name}>"


def is_ready(obj: Json) -> bool:
    """Whether an object's condition `Ready` is True."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
