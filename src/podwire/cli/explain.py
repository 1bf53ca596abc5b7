"""`podwire explain`: what a thing of a node's network is, who asked for it, what breaks without it.

What lives here: which node is asked, what the cluster's API adds (an agent knows the pods of its
own node only), and how the answer looks. What does not: the answer (`podwire.trace.explain`).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click
import msgspec

from podwire.cli import printing
from podwire.cli.columns import field
from podwire.cli.context import target, target_options
from podwire.cli.thing import LISTED, kinds_and_thing
from podwire.errors import AgentAwayError, InputError, PodwireError

if TYPE_CHECKING:
    from podwire.cli.agents import Agents
    from podwire.model.state import IPAddress
    from podwire.trace.connection import Connection
    from podwire.trace.wire import Explained

#: So many nodes are named to who has to choose one.
_NAMED = 10
_LABEL_WIDTH = 10
_NARROWEST, _WIDEST = 60, 100


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed: the agent's answer, and the pods that the API has at the address."""

    node: str
    kind: str
    thing: str
    explained: Explained
    pods: tuple[dict[str, str], ...] = ()


@click.command(
    short_help="Say what an entry or address is, and what for.",
    epilog="""\b
Examples:
  podwire explain 10.244.2.7                        whose it is, and the way to it
  podwire explain flannel.1 --node node1            the same as: link flannel.1
  podwire explain route 10.244.2.0/24 --node node1
  podwire explain route 10.244.2.7 --node node1     the route that it takes
  podwire explain neigh 10.244.2.0 --node node1
  podwire explain fdb 6e:3d:4e:35:ad:0b --node node1
  podwire explain rule masquerade --node node1      or a handle, or a chain's name
""",
)
@click.argument("words", nargs=-1, required=True, metavar="[KIND] THING")
@click.option("--node", metavar="NODE", help="The node whose network is meant.")
@click.option(
    "-o",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For a person, or everything as JSON.",
)
@target_options
@click.pass_context
def explain(ctx: click.Context, words: tuple[str, ...], node: str | None, output: str) -> None:
    """Say what THING is on a node, which object asked for it, and what breaks without it.

    KIND is route, neigh, fdb, link, rule or ip. Without it, an IP address is an ip, a prefix a
    route, a MAC an fdb or neigh entry, and any other name a link.

    With --node, that node's agent is asked; without, the agent of this host. In a lab, or on
    another cluster, any node can tell of an ip; for the other kinds, name the node.

    Exit code 1: there is no such thing.
    """
    kinds, thing = kinds_and_thing(words)
    guessed = words[0].split()[:1] != [kinds[0]]
    answer = asyncio.run(_ask(kinds, thing, node))
    if guessed and not answer.explained.found:
        hint = ("hint", f"if it is something else, name its kind first: {LISTED}")
        details = (*answer.explained.details, hint)
        explained = msgspec.structs.replace(answer.explained, details=details)
        answer = msgspec.structs.replace(answer, explained=explained)
    if output == "json":
        printing.print_json(_as_json(answer))
    else:
        for line in _lines(answer):
            click.echo(line)
    ctx.exit(0 if answer.explained.found else 1)


# --- asking -----------------------------------------------------------------------------------


async def _ask(kinds: Sequence[str], thing: str, node: str | None) -> Answer:
    """The answer of the first of `kinds` that there is; where there is none, of the first."""
    from podwire.cli.agents import agents
    from podwire.trace.wire import Explain

    async with agents() as them:
        connection = await _connect(them, kinds[0], node)
        answers = []
        for kind in kinds:
            explained = await connection.call(Explain(id=0, kind=kind, thing=thing))
            asked = connection.welcome.node
            answers.append(Answer(node=asked, kind=kind, thing=thing, explained=explained))
            if explained.found:
                break
        answer = next((one for one in answers if one.explained.found), answers[0])
        return await _with_pods(them, answer) if answer.kind == "ip" else answer


async def _connect(them: Agents, kind: str, node: str | None) -> Connection:
    """To the agent of `node`, or to one that will do."""
    if node is not None:
        return await them.dial(node)
    nodes = await _nodes(them)
    if nodes is None:
        return await them.dial()
    if kind != "ip":
        more = " …" if len(nodes) > _NAMED else ""
        raise InputError(
            f"which node's {kind}?",
            field="--node",
            remedy=f"name one of {', '.join(nodes[:_NAMED])}{more}" if nodes else None,
        )
    away: AgentAwayError | None = None
    for name in nodes[:_NAMED]:
        try:
            return await them.dial(name)
        except AgentAwayError as error:
            away = away or error
    raise away or PodwireError("the cluster has no nodes")


async def _nodes(them: Agents) -> list[str] | None:
    """The names of the cluster's nodes; None where this host's own agent is meant."""
    from podwire.cli.agents import HOST_SOCKET
    from podwire.cluster.kube import NODES

    lab = target().lab_info()
    if lab is None and target().kubeconfig is None and HOST_SOCKET.exists():
        return None
    listed = await them.client.list(NODES)
    return sorted(node["metadata"]["name"] for node in listed.items)


async def _with_pods(them: Agents, answer: Answer) -> Answer:
    """What the API knows of an address that is in a node's subnet."""
    from podwire.cluster.kube import PODS

    details = dict(answer.explained.details)
    if not {"use", "pod"} & details.keys():
        return answer
    ip = ip_address(answer.thing.partition("/")[0].strip())
    # Not by status.podIP: that finds but the first address of a pod with two.
    selector = f"spec.nodeName={details['node']}"
    try:
        listed = await them.client.list(PODS, None, field_selector=selector)
    except PodwireError as error:
        return _about_pods(answer, f"which pod has it is not known: {error.message}")
    pods = tuple(_pod(one) for one in listed.items if ip in _addresses(one))
    # Pods that have ended keep the address that they had, and another one may have it now.
    alive = tuple(one for one in pods if one["phase"] in ("Running", "Pending")) or pods
    if not alive:
        return _about_pods(answer, "no pod has it")
    told = [
        f"pod {one['name']} on {one['node']} ({one['phase']}, {one['age']} old)" for one in alive
    ]
    return msgspec.structs.replace(_about_pods(answer, ", ".join(told), first=True), pods=alive)


def _addresses(pod: dict[str, Any]) -> set[IPAddress]:
    """A pod's own addresses; one on its node's network has none."""
    if field(pod, "spec.hostNetwork"):
        return set()
    listed = [one.get("ip") for one in field(pod, "status.podIPs") or ()]
    return {ip_address(text) for text in (*listed, field(pod, "status.podIP")) if text}


def _pod(obj: dict[str, Any]) -> dict[str, str]:
    metadata = obj["metadata"]
    return {
        "name": f"{metadata['namespace']}/{metadata['name']}",
        "node": field(obj, "spec.nodeName") or "",
        "phase": field(obj, "status.phase") or "Unknown",
        "started": field(obj, "status.startTime") or "",
        "age": printing.age(metadata.get("creationTimestamp")),
    }


def _about_pods(answer: Answer, told: str, *, first: bool = False) -> Answer:
    """With what the API tells, in place of what the agent could not; `first`: it says it all."""
    one = answer.explained
    details = tuple(detail for detail in one.details if detail[0] != "use")
    text = told if first else f"{one.text}: {told}"
    explained = msgspec.structs.replace(one, text=text, details=details)
    return msgspec.structs.replace(answer, explained=explained)


# --- printing ---------------------------------------------------------------------------------


def _as_json(answer: Answer) -> dict[str, Any]:
    """As documented in docs/reference/podwire-explain.md."""
    one = answer.explained
    return {
        "node": answer.node,
        "kind": answer.kind,
        "thing": answer.thing,
        "found": one.found,
        "text": one.text,
        "why": {"object": one.why.object, "reason": one.why.reason} if one.why else None,
        "without": one.without,
        "details": [{"label": label, "text": text} for label, text in one.details],
        "pods": list(answer.pods),
    }


def _lines(answer: Answer) -> Iterator[str]:
    """Names and rules are whoever's who made them: what a terminal would obey is shown escaped."""
    from podwire.trace.render.ink import clean

    one = answer.explained
    coloured = printing.colour_enabled()

    def style(text: str, **how: Any) -> str:
        return click.style(text, **how) if coloured else text

    title = clean(f"{answer.kind} {answer.thing} on {answer.node}")
    yield style(title, bold=True) + ("" if one.found else style(": not found", fg="yellow"))
    yield from _wrapped(clean(one.text), "  ", "  ")
    rows = [("because", str(one.why) if one.why else ""), ("without", one.without), *one.details]
    before = ""
    for label, told in rows:
        if not told:
            continue
        text = clean(told)
        shown = "" if label == before else label
        before = label
        head = style(f"  {shown:<{_LABEL_WIDTH}}", **_LOOKS.get(label, {"dim": True}))
        if label in _COMMANDS:
            yield head + text
        else:
            first, *rest = _wrapped(text, "  " + " " * _LABEL_WIDTH, "  " + " " * _LABEL_WIDTH)
            yield head + first.lstrip()
            yield from rest


#: Whoever copies a line wants it whole.
_COMMANDS = frozenset({"mend", "show", "entry"})
_LOOKS: dict[str, dict[str, Any]] = {
    "wrong": {"fg": "red"},
    "beware": {"fg": "yellow"},
    "mend": {"fg": "cyan"},
}


def _wrapped(text: str, first: str, rest: str) -> Sequence[str]:
    width = 10_000
    if sys.stdout.isatty():
        width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
