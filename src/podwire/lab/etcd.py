"""A real etcd for the agents' leases, with the network's configuration as Flannel has it.

`python -m podwire.lab.etcd`, a process of the lab in the underlay's network namespace, where all
nodes reach it. What lives here: starting etcd, writing the configuration, and what that says. What
does not: reading it, and leases (`podwire.cluster.etcd`).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from podwire.lab.faults import ETCD_PORT
from podwire.lab.namespaces import die_with_parent
from podwire.lab.shape import NODE_SUBNET, Shape
from podwire.plan.transport import vxlan

CONFIG_KEY = "/coreos.com/network/config"
_LOOK_AGAIN_S = 0.05
#: What this is called in Flannel's documents.
_BACKENDS = {"direct": "host-gw"}


def flannel_config(shape: Shape) -> str:
    """The document at CONFIG_KEY.

    Source: Documentation/configuration.md and backends.md of Flannel.
    """
    fabric = shape.resolved
    backend: dict[str, Any] = {"Type": _BACKENDS.get(fabric.transport, fabric.transport)}
    if fabric.uses_vxlan:
        backend |= {"VNI": fabric.vni, "Port": fabric.vxlan_port}
    if fabric.transport == "udp":
        backend["Port"] = fabric.udp_port
    for field, on in (
        ("DirectRouting", fabric.cross_subnet),
        ("Learning", fabric.learning),
        ("GBP", fabric.gbp),
    ):
        if on:
            backend[field] = True
    if fabric.mtu is not None:
        # Of VXLAN, Flannel's is the underlay's: the tunnel's headers come off it.
        overhead = vxlan.OVERHEAD[min(shape.versions)] if fabric.uses_vxlan else 0
        backend["MTU"] = fabric.mtu + overhead
    document: dict[str, Any] = {"EnableIPv4": 4 in shape.versions}
    for network in shape.network:
        prefix = "" if network.version == 4 else "IPv6"
        document[f"{prefix}Network"] = str(network)
        document[f"{prefix}SubnetLen"] = NODE_SUBNET[network.version]
    if 6 in shape.versions:
        document["EnableIPv6"] = True
    return json.dumps(document | {"Backend": backend})


def main() -> int:
    """Run etcd until it ends or SIGTERM; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m podwire.lab.etcd")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--config", required=True, help=f"the document at {CONFIG_KEY}")
    parser.add_argument("--ready-fd", type=int, help="where to say `ready`")
    options = parser.parse_args()
    clients = f"http://{_any_address()}:{ETCD_PORT}"
    etcd = subprocess.Popen(
        [
            *("etcd", "--name", "lab", "--data-dir", options.data_dir, "--log-level", "warn"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            # It is alone: nobody is to reach it as a peer.
            *("--listen-peer-urls", "http://127.0.0.1:0"),
            "--unsafe-no-fsync",
        ],
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: etcd.terminate())
    while etcd.poll() is None and not _put(CONFIG_KEY, options.config):
        # Nothing tells when it begins to answer.
        time.sleep(_LOOK_AGAIN_S)
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"ready\n")
    return etcd.wait()


def _any_address() -> str:
    """Every address of the namespace, IPv4's too where there is IPv6."""
    return "[::]" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"  # noqa: S104


def _put(key: str, value: str) -> bool:
    """Have etcd keep a value; False where it does not answer (yet).

    Source: etcd's gRPC gateway, /v3/kv/put.
    """
    connection = http.client.HTTPConnection("localhost", ETCD_PORT, timeout=2.0)
    body = {"key": _base64(key), "value": _base64(value)}
    try:
        connection.request("POST", "/v3/kv/put", json.dumps(body))
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


if __name__ == "__main__":
    sys.exit(main())
