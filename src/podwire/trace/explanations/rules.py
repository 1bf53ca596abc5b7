"""nft rules: by their handle, a chain's name, both, or words of their text."""

from __future__ import annotations

import re
from shlex import quote

from podwire.kernel.observe.rule_listing import ListedRule, list_rules
from podwire.model.state import NftRule
from podwire.plan import guard, isolation, spoofing
from podwire.trace.explanations.knowledge import Details, Explanation, Knowledge

_HANDLE = re.compile(r"(?:(.*?\S)\s+)??(?:#\s*)?(?:handle\s+)?(\d+)")
_DIGEST = re.compile(r' comment "podwire [0-9a-f]{12}"$')
#: So many rules are shown when several fit.
_SHOWN = 20

#: Our rules that drop, by the counter that each has: what it is, and what happens without it.
_COUNTED = re.compile(r'counter name "(\w+)" drop')
_GUARDS = {
    guard.STRANGER.name: (
        "VXLAN packets that come from no node of the cluster are dropped",
        "whoever reaches the VXLAN port could put any packet into the pod network",
    ),
    spoofing.SPOOFED_IP.name: (
        "packets of a pod with a source that is not its own are dropped",
        "a pod could send in the name of another",
    ),
    spoofing.SPOOFED_ARP.name: (
        "ARP of a pod about an address that is not its own is dropped",
        "a pod could take over the traffic of another, or of the gateway",
    ),
    spoofing.SPOOFED_ND.name: (
        "neighbour advertisements of a pod for an address that is not its own are dropped",
        "a pod could take over the traffic of another, or of the gateway",
    ),
    spoofing.SPOOFED_RA.name: (
        "router advertisements and redirects of pods are dropped",
        "a pod could have all that its node or other pods send outside over IPv6",
    ),
    spoofing.OTHER_FRAMES.name: (
        "frames of pods that are neither ARP nor IP are dropped",
        "a pod could hide an address that is not its own behind a tag",
    ),
    isolation.ISOLATED.name: (
        "packets between pods and their own node are dropped, as --isolate-host asks",
        "pods and their node could talk to each other",
    ),
}

#: Who makes chains and tables of these names, by how they begin.
_MAKERS = (
    ("KUBE-", "kube-proxy or kubelet"),
    ("kube-proxy", "kube-proxy"),
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("cali-", "Calico"),
    ("FLANNEL", "flanneld"),
    ("flannel", "flanneld"),
    ("CNI-", "a CNI plugin"),
    ("CILIUM", "Cilium"),
    ("WEAVE", "Weave Net"),
    ("ufw", "ufw"),
    ("firewalld", "firewalld"),
    ("f2b", "fail2ban"),
    ("LIBVIRT", "libvirt"),
    ("libvirt", "libvirt"),
)
_IPTABLES = ("raw", "mangle", "nat", "filter", "security")


def explain_rule(about: Knowledge, thing: str) -> Explanation:
    """`thing` is a chain (also `TABLE CHAIN`, `FAMILY TABLE CHAIN`) and a handle, one of the two,
    or words of the rule."""
    rules = list_rules()
    found = [one for one in rules if _fits(one, thing)]
    if not found:
        return _missing(about, thing, rules)
    if len(found) > 1:
        return _several(about, found)
    (only,) = found
    wanted = _wanted(about, only)
    answer = Explanation(text="", details=_details(only))
    if wanted is not None:
        _ours(answer, wanted)
    else:
        answer.text = f"not made by Podwire: {_maker(only)}"
        answer.without = "nothing of the pod network needs it, as far as this node knows"
    answer.details.append(
        ("show", f"nft -a list chain {only.family} {quote(only.table)} {quote(only.chain)}")
    )
    return answer


def _fits(rule: ListedRule, thing: str) -> bool:
    chains = (rule.chain, f"{rule.table} {rule.chain}", f"{rule.family} {rule.table} {rule.chain}")
    handle = _HANDLE.fullmatch(thing)
    if handle is not None and handle[1] in (None, *chains):
        return rule.handle == int(handle[2])
    tables = (rule.table, f"{rule.family} {rule.table}")
    return thing in (*chains, *tables) or thing.casefold() in rule.text.casefold()


def _wanted(about: Knowledge, rule: ListedRule) -> NftRule | None:
    return about.intent.nft_rule(rule.table, rule.chain, rule.text, rule.family)


def _details(rule: ListedRule) -> Details:
    where = f"{rule.family} {rule.table} {rule.chain}"
    found = [("entry", _DIGEST.sub("", rule.text)), ("chain", f"{where}, handle {rule.handle}")]
    if rule.hook:
        found.append(("hook", rule.hook.rstrip(";")))
    return found


def _ours(answer: Explanation, wanted: NftRule) -> None:
    answer.why = wanted.why
    if "masquerade" in wanted.text:
        answer.text = "what pods send out of the pod network takes the node's address"
        answer.without = "nobody outside of the cluster could answer pods"
    elif counted := _COUNTED.search(wanted.text):
        answer.text, answer.without = _GUARDS.get(counted[1], ("a rule that drops", ""))
    elif "notrack" in wanted.text:
        answer.text = "packets of the tunnel bypass conntrack"
        answer.without = "each flow in the tunnel would cost a conntrack entry; nothing breaks"
    else:
        answer.text = "a rule of the pod network"


def _several(about: Knowledge, found: list[ListedRule]) -> Explanation:
    ours = sum(_wanted(about, one) is not None for one in found)
    answer = Explanation(
        text=f"{len(found)} rules fit, {ours} of them Podwire's; name one by its chain and handle",
        details=[],
    )
    for one in found[:_SHOWN]:
        where = f"{one.family} {one.table} {one.chain}"
        answer.details.append((str(one.handle), f"{where}: {_DIGEST.sub('', one.text)}"))
    if len(found) > _SHOWN:
        answer.details.append(("more", f"{len(found) - _SHOWN} not shown"))
    return answer


def _missing(about: Knowledge, thing: str, rules: list[ListedRule]) -> Explanation:
    """No such rule in the kernel; perhaps there should be one."""
    wanted = [
        (table, chain, rule)
        for table in about.intent.nft_tables()
        for chain in table.chains
        for rule in chain.rules
    ]
    for table, chain, rule in wanted:
        if thing in (chain.name, table.name) or thing.casefold() in rule.text.casefold():
            answer = Explanation(text="", details=[("entry", rule.text)])
            _ours(answer, rule)
            where = f"{table.family} {table.name} {chain.name}"
            answer.details.append(("wrong", f"it is not in the kernel's chain {where}"))
            line = f"podwire doctor --node {about.node} --fix"
            answer.details.append(("mend", about.remedies.here(line)))
            return answer
    chains = sorted({f"{one.table} {one.chain}" for one in rules})
    known = ", ".join(chains[:_SHOWN]) or "none"
    return Explanation(
        found=False,
        text=f"{about.node} has no nft rule with handle, chain or words `{thing}`;"
        f" chains with rules: {known}",
    )


def _maker(rule: ListedRule) -> str:
    for name in (rule.chain, rule.table):
        for prefix, maker in _MAKERS:
            if name.startswith(prefix):
                return f"{maker} makes chains of that name"
    if rule.family in ("ip", "ip6") and rule.table in _IPTABLES:
        return "table and chain are those of iptables"
    return f"table {rule.family} {rule.table} is somebody else's"
