"""Files that the agent leaves for others: the lease in Flannel's `subnet.env`; and where its own
are."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_interface
from pathlib import Path

from podwire.errors import InputError
from podwire.model.cluster import NetworkConfig
from podwire.model.state import IPNetwork
from podwire.plan.wiring.bridge import gateway

#: Bytes of a Unix socket's path with the zero at its end (unix(7)).
_SUN_PATH = 108


def subnet_env(config: NetworkConfig) -> str:
    """What flanneld writes to /run/flannel/subnet.env, and its CNI plugin and Docker read."""
    lines = []
    for prefix, version in (("FLANNEL_", 4), ("FLANNEL_IPV6_", 6)):
        network = next((net for net in config.network if net.version == version), None)
        subnet = next((net for net in config.lease.subnets if net.version == version), None)
        if network is not None and subnet is not None:
            lines.append(f"{prefix}NETWORK={network}")
            lines.append(f"{prefix}SUBNET={gateway(subnet)}/{subnet.prefixlen}")
    lines.append(f"FLANNEL_MTU={config.mtu}")
    # What flanneld means by it: masquerading is done here, so the container runtime need not.
    lines.append(f"FLANNEL_IPMASQ={'true' if config.masquerade else 'false'}")
    return "\n".join(lines) + "\n"


def read_subnet_env(path: Path) -> tuple[IPNetwork, ...]:
    """The subnets in such a file: those that this node had before. None where it can't be read."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    values = dict(line.strip().split("=", 1) for line in lines if "=" in line)
    found = []
    for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
        # Whatever else stands there: it is only what we ask for first.
        with contextlib.suppress(ValueError, KeyError):
            found.append(ip_interface(values[key]).network)
    return tuple(found)


def make_directory(path: Path, option: str, *, longest: str = "") -> None:
    """Have a directory, and room for a Unix socket named `longest` in it.

    Raises InputError, which names the option that the path is from.
    """
    if longest and len(os.fsencode(path / longest)) >= _SUN_PATH:
        raise InputError(
            f"{path} is too long for a Unix socket's path, which has {_SUN_PATH - 1} bytes at most",
            field=option,
            remedy="choose a shorter one",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} can't be made: {error.strerror or error}",
            field=option,
            remedy="choose a directory that can be written to",
        ) from error
