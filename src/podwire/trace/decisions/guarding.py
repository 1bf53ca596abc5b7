"""The guard of a pod's port: what it lets pass, and what of a pod it drops.

What lives here: the program that anti-spoofing hangs to the port. What does not: nft's rules, which
the kernel names itself (`podwire.trace.filters`); programs of others, of which it tells nothing.
"""

from __future__ import annotations

from podwire.kernel.observe.interfaces import InterfaceState
from podwire.model.state import link_local
from podwire.plan import spoofing
from podwire.trace import iproute
from podwire.trace.decisions.flow import Flow
from podwire.trace.decisions.vantage import Vantage
from podwire.trace.model import Cause, Decision


def refused(v: Vantage, port: InterfaceState, flow: Flow) -> Decision | None:
    """What drops a packet that a pod's port has got; None where its guard lets it pass."""
    guard, pod = v.intent.guard(port.name), v.intent.pod_at_port(port.name)
    if guard is None or flow.src in (*guard.ips, link_local(guard.mac)):
        return None
    sender = f"pod {pod.pod}" if pod is not None and pod.pod else "the pod"
    problem = v.problem(
        Cause.SPOOFED,
        f"{sender} sends with the source {flow.src}, which is not its own: dropped at its port"
        f" {port.name}, and counted as {spoofing.SPOOFED_IP.name}",
        interface=port.name,
        remedy="have it send with its own address, or let it: annotation"
        ' podwire.io/anti-spoofing: "off"',
        why=guard.why,
    )
    return Decision(
        kind="tc",
        text=f"{port.name} passes {', '.join(map(str, guard.ips))}",
        command=iproute.guard_command(port.name),
        why=guard.why,
        problem=problem,
    )
