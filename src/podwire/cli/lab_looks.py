"""`podwire lab list` and `podwire lab status`: what there is, for people and for programs.

What lives here: both commands, as tables and as JSON. What is told is `podwire.lab`'s.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from podwire.cli.context import target_options
from podwire.cli.lab_shape import resolve
from podwire.durations import human_duration

if TYPE_CHECKING:
    from podwire.lab.control import ProcessStatus, Snapshot
    from podwire.lab.registry import LabInfo, LabRecord

#: So many nodes' addresses are told to people.
_NODES = 8

_output_option = click.option(
    "-o", "output", type=click.Choice(["text", "json"]), default="text", help="As what."
)


@click.command(
    "list",
    epilog="""\b
Examples:
  podwire lab list
  podwire lab list -o json | jq -r '.labs[] | select(.status == "stopped") | .name'
""",
)
@_output_option
def list_(output: str) -> None:
    """List the labs of this machine."""
    from podwire.cli.printing import Table, age, print_json
    from podwire.lab import registry

    labs = [_summary(info) for info in registry.list_labs()]
    if output == "json":
        print_json({"labs": labs})
        return
    if not labs:
        print("There is no lab on this machine; make one with `podwire lab up`.")
        return
    Table(("NAME", "STATUS", "NODES", "PROFILE", "AGE", "API")).print(
        (
            lab["name"],
            lab["status"],
            _or_dash(lab["nodes"]),
            _or_dash(lab["profile"]),
            age(lab["created"]) if lab["created"] else "-",
            _or_dash(lab["api"]),
        )
        for lab in labs
    )


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _summary(info: LabInfo) -> dict[str, Any]:
    from podwire.lab import teardown

    record = info.record()
    running = teardown.supervisor(info) is not None
    return {
        "name": info.name,
        "status": ("up" if running else "stopped") if record else "incomplete",
        "nodes": len(record.nodes) if record else None,
        "profile": record.shape.resolved.profile if record else None,
        "created": _time(record.created) if record else None,
        "api": f"https://127.0.0.1:{record.api_port}" if record and running else None,
        "kubeconfig": str(info.kubeconfig) if record else None,
    }


@click.command(
    short_help="Show a lab's network, faults and processes.",
    epilog="""\b
Examples:
  podwire lab status
  podwire lab status -o json | jq -r '.nodes[] | [.name, .ips[0]] | @tsv'
""",
)
@_output_option
@target_options
def status(output: str) -> None:
    """Show a lab's network, faults and processes; exit status 1 when not all is well."""
    from podwire.cli.printing import print_json
    from podwire.lab.control import Control
    from podwire.lab.readiness import existing

    info = resolve()
    with Control(info) as control:
        snapshot = control.request("status")
    record = existing(info)
    if output == "json":
        print_json(_document(record, snapshot))
    else:
        _print_shape(record)
        _print_faults(info, snapshot)
        _print_processes(info, snapshot)
    if not _is_well(snapshot):
        sys.exit(1)


def _is_well(snapshot: Snapshot) -> bool:
    stale = any(process.stale for process in snapshot.processes)
    return snapshot.ready and not snapshot.faults and not stale


def _document(record: LabRecord, snapshot: Snapshot) -> Mapping[str, object]:
    import msgspec

    shape, fabric = record.shape, record.shape.resolved
    return {
        "name": record.name,
        "well": _is_well(snapshot),
        "api": f"https://127.0.0.1:{record.api_port}",
        "created": _time(record.created),
        "network": {
            "profile": fabric.profile,
            "ipam": fabric.ipam,
            "wiring": fabric.wiring,
            "transport": fabric.transport,
            "cidrs": list(map(str, shape.network)),
            "store": shape.store,
        },
        "underlay": {"layout": shape.underlay, "cidrs": _underlay(record)},
        "nodes": [{"name": node.name, "ips": list(record.ips(node))} for node in record.nodes],
        "faults": {
            "dead": snapshot.faults.dead,
            "partitions": [
                {
                    "between": [cut.a, cut.b],
                    "protocol": cut.protocol,
                    "port": cut.port or None,
                }
                for cut in snapshot.faults.cuts
            ],
            "withoutApi": snapshot.faults.no_api,
        },
        "processes": [
            {**msgspec.structs.asdict(process), "since": _time(process.since)}
            for process in snapshot.processes
        ],
    }


def _time(seconds: float) -> str:
    """RFC 3339, as the API writes times."""
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _underlay(record: LabRecord) -> list[str]:
    from podwire.lab.addressing import segments

    links = segments(record.shape.underlay, record.shape.underlay_versions)
    return [str(network) for link in links for network in link.networks]


def _print_shape(record: LabRecord) -> None:
    """What the lab is made of, a line for each of lab, network, underlay and nodes."""
    shape, nodes = record.shape, record.nodes
    fabric = shape.resolved
    networks = ", ".join(map(str, shape.network))
    between = ", with a router between" if shape.underlay == "routed" else ""
    print(
        f"lab {record.name}: {len(nodes)} node{'s' if len(nodes) != 1 else ''},"
        f" API https://127.0.0.1:{record.api_port}\n"
        f"network {networks}: {fabric.profile}"
        f" ({fabric.ipam} × {fabric.wiring} × {fabric.transport})\n"
        f"underlay {', '.join(_underlay(record))}{between}"
    )
    addresses = [f"{node.name} {' '.join(record.ips(node))}" for node in nodes[:_NODES]]
    more = ["…"] if len(nodes) > _NODES else []
    one_line = all(len(record.ips(node)) == 1 for node in nodes[:_NODES])
    print("nodes", (", " if one_line else "\n      ").join(addresses + more), end="\n\n")


def _print_faults(info: LabInfo, snapshot: Snapshot) -> None:
    for sentence in snapshot.faults.sentences():
        print(sentence)
    if snapshot.faults:
        print(f"undo it with: podwire --lab {info.name} lab heal\n")


def _print_processes(info: LabInfo, snapshot: Snapshot) -> None:
    from podwire.cli.printing import Table

    Table(("PROCESS", "STATUS", "PID", "RESTARTS", "AGE", "MESSAGE")).print(
        (
            process.name,
            process.state,
            str(process.pid or "-"),
            str(process.restarts),
            human_duration(time.time() - process.since),
            _message(process),
        )
        for process in snapshot.processes
    )
    if any(process.stale for process in snapshot.processes):
        print(f"\na change was interrupted; go on with: podwire lab up --name {info.name}")


def _message(process: ProcessStatus) -> str:
    return process.message or ("runs with options of before" if process.stale else "")
