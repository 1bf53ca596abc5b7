"""`python -m podwire.lab.api`: run the API server until SIGTERM.

When ready it writes one line of JSON, {"pid": ..., "port": ..., "unix": ...}, to --ready-fd (and
closes it) or to --ready-file (which appears complete). It logs one event a line to stderr. On
SIGHUP it reads --cut-file again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from ipaddress import ip_network
from pathlib import Path
from time import monotonic

import msgspec

from podwire.errors import PodwireError
from podwire.files import write_atomically
from podwire.lab.api.auth import read_token
from podwire.lab.api.server import ApiServer, ServerSettings
from podwire.lab.controllers import ControllerSettings

log = logging.getLogger("podwire.lab.api")


def main() -> int:
    """Parse the command line and serve; returns the exit code."""
    began = monotonic()
    options = _parse(sys.argv[1:])
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        asyncio.run(_serve(options, began))
    except (PodwireError, OSError) as error:
        log.error("cannot serve error=%r", str(error))
        return 1
    return 0


async def _serve(options: argparse.Namespace, began: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = ApiServer(
        ServerSettings(
            database=options.db,
            token=read_token(options.token_file),
            unix_socket=options.unix,
            port=options.port,
            tls_dir=options.tls_dir,
            node_sockets=options.node_socket_dir,
            cut_file=options.cut_file,
            controllers=ControllerSettings(
                cluster_cidrs=tuple(options.cluster_cidr),
                node_mask=options.node_mask,
                lease_s=options.node_grace,
            ),
        )
    )
    await server.start()
    loop.add_signal_handler(signal.SIGHUP, server.read_cuts)
    ready = {"pid": os.getpid(), "port": server.port, "unix": str(options.unix)}
    _announce(options, msgspec.json.encode(ready) + b"\n")
    took_ms = round((monotonic() - began) * 1000)
    log.info(
        "ready unix=%s port=%s revision=%d took_ms=%d",
        options.unix,
        server.port,
        server.objects.revision,
        took_ms,
    )
    try:
        await stop.wait()
    finally:
        log.info("stopping")
        await server.stop()


def _announce(options: argparse.Namespace, line: bytes) -> None:
    if options.ready_file is not None:
        write_atomically(options.ready_file, line)
    if options.ready_fd is not None:
        with os.fdopen(options.ready_fd, "wb") as pipe:
            pipe.write(line)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="podwire.lab.api", description=__doc__)
    parser.add_argument("--db", type=Path, required=True, help="SQLite file, made if absent")
    parser.add_argument("--unix", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1, 0: any")
    parser.add_argument(
        "--token-file", type=Path, required=True, help="bearer token for TCP, made if absent"
    )
    parser.add_argument(
        "--tls-dir",
        type=Path,
        help="speak TLS on the port, with tls.crt and tls.key, made if absent",
    )
    parser.add_argument("--ready-fd", type=int, help="file descriptor to report readiness to")
    parser.add_argument("--ready-file", type=Path, help="file to report readiness in")
    parser.add_argument(
        "--node-socket-dir", type=Path, help="directory of <node>/kubelet.sock, for logs and exec"
    )
    parser.add_argument(
        "--cluster-cidr",
        type=_networks,
        default=_networks("10.244.0.0/16"),
        help="what nodes' pod subnets are cut from; two, with a comma, for dual stack; '' for none",
    )
    parser.add_argument(
        "--node-mask", type=int, default=24, help="prefix length of a node's IPv4 pod CIDR"
    )
    parser.add_argument(
        "--node-grace",
        type=float,
        default=40.0,
        metavar="SECONDS",
        help="a node that is silent for longer is not ready",
    )
    parser.add_argument(
        "--cut-file",
        type=Path,
        help="network namespaces whose connections are refused, a path a line; read on SIGHUP",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser.parse_args(arguments)


def _networks(text: str) -> list[str]:
    return [str(ip_network(part.strip())) for part in text.split(",")] if text else []


if __name__ == "__main__":
    sys.exit(main())
