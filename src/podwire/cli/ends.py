"""Which pod, node or address a person means by SRC and DST.

What lives here: reading such a word, finding the object, and errors that say what is wrong with
it. What does not: what is done with the two ends.

    name             a pod of the namespace, or a node; where it is both, an error asks for more
    NS/NAME          a pod
    pod/NAME, pod/NS/NAME, node/NAME
    an IP address    the pod or the node that has it, else just the address
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple

import msgspec

from podwire.cli.podstatus import status_word
from podwire.cluster.kube import NODES, PODS, KubeClient
from podwire.cluster.kube.resources import find_by_word
from podwire.cluster.nodes import NodeWithConditions
from podwire.errors import InputError, NotFoundError, PodwireError
from podwire.trace.evidence import NodeFacts, PodFacts
from podwire.trace.facts import node_facts, pod_facts
from podwire.trace.model import Endpoint

# RFC 1123 subdomains, as Kubernetes has the names of pods and nodes.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NEAR = 3
_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104  nothing is bound to it


class Word(NamedTuple):
    """What was typed: `kind` is `pod`, `node`, `address`, or empty where that is still open."""

    kind: str
    namespace: str
    name: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """An end of a trace: which object it is, and the addresses that it has.

    `host_network` is the name of a pod that uses its node's network: then the end is the node.
    """

    kind: Literal["pod", "node", "address"]
    name: str
    node: str
    ips: tuple[str, ...]
    pod: PodFacts | None = None
    host_network: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.ips[0]

    def at(self, ip: str) -> Endpoint:
        """The end as a trace has it, with that of its addresses which is used."""
        return Endpoint(kind=self.kind, ip=ip, name=self.name, node=self.node)


def parse(text: str, field: str, namespace: str) -> Word:
    """Read a word. `namespace` is that of pods that are named without. Raises InputError."""
    try:
        return Word("address", "", str(ip_address(text)))
    except ValueError:
        pass
    first, *rest = text.split("/")
    resource = find_by_word(first) if rest else None
    kind = {PODS: "pod", NODES: "node"}.get(resource, "") if resource is not None else ""
    parts = rest if kind else [first, *rest]
    allowed = 1 if kind == "node" else 2
    if len(parts) > allowed or not all(map(_NAME.fullmatch, parts)):
        raise InputError(
            f"{text!r} names no pod, node or address",
            field=field,
            remedy="give NAME, NAMESPACE/NAME, pod/NAME, node/NAME or an IP; names are lower-case"
            " letters, digits, '-' and '.', beginning with a letter or digit",
        )
    if len(parts) == 2:
        return Word("pod", parts[0], parts[1])
    return Word(kind, "" if kind == "node" else namespace, parts[0])


async def find(client: KubeClient, word: Word, field: str) -> End:
    """The object that is meant. Raises InputError, saying what there is, and what it lacks."""
    match word.kind:
        case "address":
            return await _at_address(client, word.name)
        case "pod":
            pod, node = await _pod(client, word), None
        case "node":
            pod, node = None, await _node(client, word.name)
        case _:
            pod, node = await asyncio.gather(_pod(client, word), _node(client, word.name))
    if pod is not None and node is not None:
        raise InputError(
            f"{word.name} is a pod of namespace {word.namespace}, and a node",
            field=field,
            remedy=f"say pod/{word.name} or node/{word.name}",
        )
    if pod is not None:
        return _end_of_pod(pod, field)
    if node is not None:
        return _end_of_node(node, field)
    raise await _missing(client, word, field)


async def _pod(client: KubeClient, word: Word) -> Mapping[str, Any] | None:
    try:
        return await client.get(PODS, word.name, word.namespace)
    except NotFoundError:
        return None


async def _node(client: KubeClient, name: str) -> NodeFacts | None:
    try:
        return node_facts(await client.get(NODES, name, type=NodeWithConditions))
    except NotFoundError:
        return None


async def _at_address(client: KubeClient, ip: str) -> End:
    """Who has this address: a pod before a node, since only pods on the node's network share."""
    selector = f"status.podIP={ip}"
    try:
        found = (await client.list(PODS, field_selector=selector)).items
    except PodwireError:
        found = []  # who may not list all pods traces to the bare address
    for pod in found:
        facts = pod_facts(pod)
        if not _on_host_network(pod) and facts.phase not in ("Succeeded", "Failed"):
            return End(kind="pod", name=facts.name, node=facts.node, ips=(ip,), pod=facts)
    return End(kind="address", name="", node="", ips=(ip,))


def _end_of_pod(pod: Mapping[str, Any], field: str) -> End:
    facts = pod_facts(pod)
    if not facts.node:
        raise InputError(
            f"pod {facts.name} is {status_word(pod)}: no node runs it{_condition(pod)}",
            field=field,
            remedy=f"podwire describe pod {facts.name.partition('/')[2]} tells more",
        )
    if not facts.ips or facts.phase in ("Succeeded", "Failed"):
        ended = facts.phase in ("Succeeded", "Failed")
        raise InputError(
            f"pod {facts.name} is {status_word(pod)} on {facts.node}:"
            f" {'it has ended' if ended else 'it has no address yet'}{_condition(pod)}",
            field=field,
            remedy=f"podwire describe pod {facts.name.partition('/')[2]} tells more",
        )
    if _on_host_network(pod):
        return End(
            kind="node",
            name=facts.node,
            node=facts.node,
            ips=facts.ips,
            pod=facts,
            host_network=facts.name,
        )
    return End(kind="pod", name=facts.name, node=facts.node, ips=facts.ips, pod=facts)


def _end_of_node(node: NodeFacts, field: str) -> End:
    if not node.ips:
        raise InputError(f"node {node.name} has no InternalIP", field=field)
    return End(kind="node", name=node.name, node=node.name, ips=node.ips)


def _on_host_network(pod: Mapping[str, Any]) -> bool:
    return bool((pod.get("spec") or {}).get("hostNetwork"))


def _condition(pod: Mapping[str, Any]) -> str:
    """The scheduler's or the kubelet's own words on why it does not run, in brackets."""
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one.get("status") == "False" and one.get("message"):
            return f" ({one['message']})"
    return ""


async def _missing(client: KubeClient, word: Word, field: str) -> InputError:
    """The error that names what is similar."""
    names: list[str] = []
    if word.kind != "node":
        listed = await client.list(PODS, word.namespace)
        names += [pod["metadata"]["name"] for pod in listed.items]
    if word.kind != "pod":
        names += [node["metadata"]["name"] for node in (await client.list(NODES)).items]
    near = difflib.get_close_matches(word.name, names, n=_NEAR)
    what = {
        "pod": f"there is no pod {word.name} in namespace {word.namespace}",
        "node": f"there is no node {word.name}",
    }.get(word.kind, f"there is no pod {word.name} in namespace {word.namespace}, and no such node")
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        remedy = "podwire get pods -A lists pods, podwire get nodes nodes"
    return InputError(what, field=field, remedy=remedy)


def family(source: End, target: End, wanted: int | None) -> tuple[str, str]:
    """The addresses to use: of the family wanted, else of the first that both have.

    Raises InputError where an end has none of that family.
    """
    versions = (wanted,) if wanted is not None else (4, 6)
    for version in versions:
        found = [
            next((ip for ip in end.ips if ip_address(ip).version == version), None)
            for end in (source, target)
        ]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    if source.kind == "node" and target.kind == "pod":
        # It sends with an address of its tunnel then, which its stack will tell.
        for ip in target.ips:
            if (version := ip_address(ip).version) in versions:
                return _ANY[version], ip
    if wanted is not None:
        end = source if _lacks(source, wanted) else target
        raise InputError(
            f"{end} has no IPv{wanted} address, only {', '.join(end.ips)}",
            field="--family",
            remedy="leave it out, or take the other one",
        )
    ends = [f"{end} ({', '.join(end.ips)})" if end.name else str(end) for end in (source, target)]
    raise InputError(
        f"{ends[0]} and {ends[1]}: no family is common to both",
        field="DST",
    )


def _lacks(end: End, version: int) -> bool:
    return all(ip_address(ip).version != version for ip in end.ips)
