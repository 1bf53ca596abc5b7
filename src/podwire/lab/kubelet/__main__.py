"""`python -m podwire.lab.kubelet`: see the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

from podwire.lab.kubelet.agent import Options, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m podwire.lab.kubelet")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node-name", required=True)
    parser.add_argument(
        "--node-ip", type=_ips, required=True, dest="node_ips", help="one a family, with a comma"
    )
    parser.add_argument(
        "--grace", type=float, default=40.0, help="seconds that the node may be silent"
    )
    parser.add_argument(
        "--pod-network",
        default="",
        metavar="IPAM@NETWORK",
        help="sandboxes of another are made anew, with their IPs if only the IPAM is another",
    )
    parser.add_argument("--socket", type=Path, required=True, help="where to serve logs and exec")
    parser.add_argument("--ready-fd", type=int, help="where to say `ready` or `waiting WHY`")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    asyncio.run(run(Options(**vars(arguments))))


def _ips(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
