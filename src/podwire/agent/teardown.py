"""Teardown: take all that Podwire made off this host. A verb of its own, never a side effect.

The order is the reverse of a start: runtimes are told first that pods can't be wired, then the
tunnel's process, pods' interfaces, the kernel's entries, and the files go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from podwire.agent.config import AgentConfig
from podwire.agent.memory import FabricMemory
from podwire.agent.tunnel_process import stop_tunnel
from podwire.cni import install
from podwire.errors import PodwireError
from podwire.ipam.store import Store
from podwire.kernel.attach import detach
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.reconcile import Reconciler
from podwire.model.state import Desired


def teardown(config: AgentConfig, *, force: bool) -> Iterator[str]:
    """Undo everything, yielding a line for each thing that is done.

    Raises PodwireError where an agent is running, and without `force` where pods are attached.
    """
    had_state = (config.state_dir / "ipam.db").exists()
    # Its lock is what tells that no agent runs; one that starts now has to wait for it.
    store = Store(config.state_dir / "ipam.db", busy_timeout_s=0.5)
    try:
        with NetlinkSocket() as sock:
            ports = sorted(
                name for name, link in links(sock).items() if link.ours and link.kind == "veth"
            )
            if ports and not force:
                raise PodwireError(
                    f"{len(ports)} pods are attached here and would lose their network",
                    remedy="drain the node first, or use --force",
                )
            for path in install.uninstall(config.cni_bin_dir, config.cni_conf_dir):
                yield f"rm {path}"
            if asyncio.run(stop_tunnel(config.tunnel_socket)):
                yield "the UDP tunnel's process is stopped"
            detach(sock, *ports)
            yield from (f"ip link del {name}" for name in ports)
        last = FabricMemory(config.fabric_file).last
        reconciler = Reconciler(last.protocols if last is not None else ())
        reconciler.replace(Desired({}))
        report = reconciler.reconcile(record=True)
        reconciler.close()
        yield from (change.line.strip() for change in report.lines)
        if report.failures:
            raise PodwireError("; ".join(report.failures))
    finally:
        store.close()
    # Files by name, not the directories: a lab on this host keeps its own beside them.
    for path in (
        config.subnet_file,
        *(config.state_dir / f"ipam.db{suffix}" for suffix in ("-wal", "-shm", "")),
        *(config.tunnel_key, config.fabric_file, config.paths_file),
        *(config.cni_socket, config.api_socket, config.operator_socket, config.tunnel_socket),
        config.tunnel_lock,
    ):
        if path.exists():
            path.unlink()
            if had_state:
                yield f"rm {path}"
    for directory in (config.subnet_file.parent, config.state_dir, config.run_dir):
        with contextlib.suppress(OSError):  # Others' files are in it, or it was never there.
            directory.rmdir()
