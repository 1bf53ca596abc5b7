"""What other network plugins have left on this node, or still keep there. It is only told.

Interfaces, firewall chains and tables by the names that each plugin gives them, CNI
configurations, and Flannel's file with the lease.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.agent.doctor.ways import devices
from podwire.agent.files import subnet_env
from podwire.cni import install
from podwire.cni.configurations import configurations
from podwire.cni.types import PLUGIN_TYPE
from podwire.kernel.link_messages import LinkState
from podwire.kernel.link_queries import links
from podwire.kernel.netlink import NetlinkSocket
from podwire.kernel.ruleset import list_chains
from podwire.model.cluster import NetworkConfig
from podwire.trace.wire import Checked

_find = Findings("leftovers")

#: Interfaces by plugin. `tunl0` is in every namespace once the module is loaded, so it counts
#: only when it is up.
_LINKS = {
    "Flannel": r"flannel(\.\d+|\d+|-v6\.\d+|-wg.*)|cni0",
    "Calico": r"cali[0-9a-f]+|vxlan(-v6)?\.calico|wireguard\.cali|tunl0",
    "Weave Net": r"weave|vethwe.*|vxlan-6784",
    "Cilium": r"cilium_\w+|lxc_health",
    "kube-router": r"kube-bridge|kube-dummy-if",
    "kubenet": r"cbr0",
    "Antrea": r"antrea-(gw0|tun0|egress0)",
    "OVN-Kubernetes": r"ovn-k8s-mp0",
}
_CHAINS = {
    "Flannel": r"FLANNEL-.*",
    "Calico": r"cali-.*",
    "Weave Net": r"WEAVE(-.*)?",
    "Cilium": r"(OLD_)?CILIUM_.*",
    "kube-router": r"KUBE-(ROUTER|POD-FW|NWPLCY)-.*",
    "Antrea": r"ANTREA-.*",
}
_TABLES = {
    "Flannel": r"flannel-ipv[46]",
    "Calico": r"calico",
    "OVN-Kubernetes": r"ovn-kubernetes",
}
#: Plugins that call the cluster's network after them, so they are rightly first.
_META_PLUGINS = frozenset({"multus", "multus-shim"})


async def examine(subject: Subject) -> AsyncIterator[Checked]:
    found = [*_confs(subject.agent.config.cni_conf_dir)]
    found += await asyncio.to_thread(_look, subject)
    for one in found:
        yield one
    if not found:
        yield _find.ok("nothing of another network plugin is here")


def _look(subject: Subject) -> list[Checked]:
    with NetlinkSocket() as sock:
        by_name = links(sock)
    return [
        *_links(by_name, subject.network),
        *_rules(),
        *_subnet_file(subject.agent.config.subnet_file, subject.network),
    ]


# --- CNI configurations -----------------------------------------------------------------------


def _confs(directory: Path) -> Iterator[Checked]:
    """Those that runtimes come to before one that has ours."""
    for one in configurations(directory):
        if one.path.name >= install.CONFLIST_NAME:
            return
        plugin = one.plugins[0] if one.plugins else "can't be read"
        if plugin in _META_PLUGINS or PLUGIN_TYPE in one.plugins:
            return
        yield _find.fail(
            f"runtimes take {one.path} ({plugin}), which sorts before"
            f" {install.CONFLIST_NAME}: pods get another network",
            "remove that plugin, or move its configuration away",
            shlex.join(["mv", str(one.path), f"{one.path}.off"]),
        )


# --- the kernel -------------------------------------------------------------------------------


def _links(by_name: Mapping[str, LinkState], network: NetworkConfig | None) -> Iterator[Checked]:
    wanted = devices(network) if network is not None else ()
    found: dict[str, list[str]] = defaultdict(list)
    for name, link in by_name.items():
        plugin = _match(_LINKS, name)
        if link.ours or plugin is None or (name == "tunl0" and not link.up):
            continue
        if name in wanted:
            yield _find.fail(
                f"the link {name} was not made by Podwire, which needs that name",
                "delete it; the agent then makes its own",
                f"ip link del {name}",
            )
        else:
            found[plugin].append(name)
    for plugin, names in found.items():
        yield _find.warn(
            f"{plugin} has left links: {named(names)}",
            f"if {plugin} is uninstalled, delete what it has left, or restart the node",
            *(shlex.join(["ip", "link", "del", name]) for name in names),
        )


def _rules() -> Iterator[Checked]:
    """Chains and tables of others. A chain may still filter or translate pods' packets."""
    chains: dict[str, list[str]] = defaultdict(list)
    tables: dict[str, set[str]] = defaultdict(set)
    for chain in list_chains():
        if (plugin := _match(_TABLES, chain.table)) is not None:
            tables[plugin].add(f"{chain.family} {chain.table}")
        elif (plugin := _match(_CHAINS, chain.name)) is not None:
            chains[plugin].append(str(chain))
    for plugin, names in tables.items():
        yield _find.warn(
            f"{plugin} has left in nft: table {named(sorted(names))}",
            f"if {plugin} is uninstalled, delete what it has left",
            *(f"nft delete table {name}" for name in sorted(names)),
        )
    for plugin, found in chains.items():
        yield _find.warn(
            f"{plugin} has left firewall chains: {named(found, most=3)}",
            f"if {plugin} is uninstalled, flush and delete them, or restart the node",
        )


def _match(patterns: Mapping[str, str], name: str) -> str | None:
    return next((one for one, pattern in patterns.items() if re.fullmatch(pattern, name)), None)


# --- files ------------------------------------------------------------------------------------


def _subnet_file(path: Path, network: NetworkConfig | None) -> Iterator[Checked]:
    if network is None:
        return
    try:
        theirs = path.read_text(errors="replace")
    except OSError:
        return
    if theirs != subnet_env(network):
        yield _find.warn(
            f"{path} was written by somebody else: is flanneld running on this node?",
            "uninstall it; the agent writes the file when it is started",
        )
