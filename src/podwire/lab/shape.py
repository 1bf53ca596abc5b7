"""What a lab is made with: the pod network's fabric, address families, underlay and store.

What lives here: the choices that are written down in the lab's record, their check, and what they
mean for the agents' command lines. What does not: what fabrics there are (`plan.profiles`).

Choices are kept as they were made, under the names of the fields of `Fabric`, and what was left
open stays so: a profile's numbers are looked up when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Literal, TypeAlias, get_args

import msgspec

from podwire.errors import InputError
from podwire.lab.addressing import RESERVED, Layout
from podwire.model.fabric import Fabric
from podwire.model.state import IPNetwork
from podwire.plan import profiles

Family: TypeAlias = Literal["ipv4", "ipv6", "dual"]
Store: TypeAlias = Literal["kube", "etcd"]
Choice: TypeAlias = str | int | bool

_VERSIONS: Mapping[str, tuple[int, ...]] = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
_FAMILIES: Mapping[tuple[int, ...], Family] = {(4,): "ipv4", (6,): "ipv6", (4, 6): "dual"}

#: Prefix length of the subnet that a node gets where each has one, by IP version.
NODE_SUBNET = {4: 24, 6: 64}
#: At most so many bits are left to number the nodes' subnets.
_SUBNET_BITS = 16
#: What every link has to carry, of IPv6 (RFC 8200, section 5).
IPV6_MIN_MTU = 1280
#: How long a node may be silent before it counts as not ready, as Kubernetes has it.
NODE_GRACE_S = 40.0

#: Options of the agent, but not of the fabric, that change nothing in some.
_FOR_SOME_FABRICS = ("guard", "probe_interval")
_BLOCK_LENGTHS = ("block_len", "block_len6")
_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Fabric)}


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The choices. `networks` are the pod networks that were given, by the IPAM they are for.

    `agent_options` are handed on to each agent, as far as they change something. `node_grace_s`:
    how long a node may be silent before the API has it as not ready.
    """

    fabric: dict[str, Choice] = {}
    networks: dict[str, tuple[str, ...]] = {}
    family: Family = "ipv4"
    underlay: Layout = "l2"
    underlay_family: Family | None = None
    store: Store = "kube"
    agent_options: tuple[str, ...] = ()
    node_grace_s: float = NODE_GRACE_S

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions of pods."""
        return _VERSIONS[self.family]

    @property
    def underlay_versions(self) -> tuple[int, ...]:
        """IP versions of nodes."""
        return _VERSIONS[self.underlay_family or self.family]

    @property
    def resolved(self) -> Fabric:
        """The fabric that the choices mean. Raises InputError where there is none."""
        return profiles.fabric(**self.fabric)  # type: ignore[arg-type]

    @property
    def network(self) -> tuple[IPNetwork, ...]:
        """The pod network, one a family, IPv4 first."""
        fabric = self.resolved
        given = self.networks.get(fabric.ipam)
        if given is None:
            return profiles.default_network(fabric, self.versions)
        return tuple(ip_network(text) for text in given)

    @property
    def subnets_of(self) -> tuple[IPNetwork, ...]:
        """Where Node objects get podCIDRs of; none where pods' addresses come from elsewhere."""
        own = self.resolved.ipam == "node-subnet" and self.store == "kube"
        return self.network if own else ()

    @property
    def pod_network(self) -> str:
        """Where pods' addresses come from, IPAM@NETWORK: with another, a pod is made anew."""
        return f"{self.resolved.ipam}@{','.join(map(str, self.network))}"

    def agent_arguments(self) -> tuple[str, ...]:
        """Options of `podwire agent` that say the same."""
        words = ["--network", ",".join(map(str, self.network))]
        # What was chosen for another transport waits for it, and would be refused now.
        given = {**self.fabric, **_for_some_fabrics(self.agent_options)}
        idle = {one.name for one in profiles.idle(self.resolved, given, self.versions)}
        chosen = {name: value for name, value in self.fabric.items() if name not in idle}
        lengths = [str(chosen[name]) for name in _BLOCK_LENGTHS if name in chosen]
        if lengths:
            words += ["--block-size", ",".join(lengths)]
        for name, value in chosen.items():
            option = name.replace("_", "-")
            if name in _BLOCK_LENGTHS:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", str(value)]
        for name, _, said in _options(self.agent_options):
            words += said if name not in idle else ()
        return tuple(words)

    def refuse_idle(self, given: Mapping[str, Choice]) -> None:
        """Raise InputError for a choice that changes nothing in this shape."""
        profiles.refuse_idle(self.resolved, given, self.versions)


def shape(
    *,
    family: str | None = None,
    network: str | None = None,
    underlay: str | None = None,
    underlay_family: str | None = None,
    store: str | None = None,
    agent_options: tuple[str, ...] = (),
    node_grace_s: float | None = None,
    **fabric: Choice | None,
) -> Shape:
    """The shape that these choices mean, None and absent ones left open.

    `network` is a CIDR, or one of each family with a comma; without `family` it says the family
    too. Raises InputError, naming the option, for what makes no sense.
    """
    chosen = choices(fabric)
    networks = parse_networks(network) if network else ()
    if family is None:
        family = _FAMILIES[tuple(one.version for one in networks)] if networks else "ipv4"
    _check_one_of("family", family, get_args(Family))
    if underlay_family is not None:
        _check_one_of("underlay-family", underlay_family, get_args(Family))
    if underlay is not None:
        _check_one_of("underlay", underlay, get_args(Layout))
    if store is not None:
        _check_one_of("store", store, get_args(Store))
    ipam = profiles.fabric(**chosen).ipam  # type: ignore[arg-type]
    made = Shape(
        fabric=chosen,
        networks={ipam: tuple(map(str, networks))} if networks else {},
        family=family,  # type: ignore[arg-type]
        underlay=underlay or "l2",  # type: ignore[arg-type]
        underlay_family=underlay_family if underlay_family != family else None,  # type: ignore[arg-type]
        store=store or "kube",  # type: ignore[arg-type]
        agent_options=agent_options,
        node_grace_s=NODE_GRACE_S if node_grace_s is None else node_grace_s,
    )
    check(made)
    made.refuse_idle({**chosen, **_for_some_fabrics(agent_options)})
    return made


def _for_some_fabrics(agent_options: Sequence[str]) -> dict[str, Choice]:
    """What they say that changes nothing in other fabrics."""
    return {
        name: value
        for name, value, _ in _options(agent_options)
        if name in _FOR_SOME_FABRICS and value != "auto"
    }


def _options(words: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The agent's options: name, value and words of each; others than `_FOR_SOME_FABRICS` may be
    told in parts."""
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if name in _FOR_SOME_FABRICS and not equals:
            value = next(rest, "")
            yield name, value, (word, value)
        else:
            yield name, value, (word,)


def choices(fabric: Mapping[str, Choice | None]) -> dict[str, Choice]:
    """Those that were made, checked: each is a field of a fabric and fits it. Raises InputError."""
    chosen: dict[str, Choice] = {}
    for name, value in fabric.items():
        if name not in _FIELDS:
            raise InputError(f"a fabric has no option {name!r}", field=name)
        if value is None:
            continue
        try:
            chosen[name] = msgspec.convert(value, type=_FIELDS[name])
        except msgspec.ValidationError as error:
            raise InputError(str(error), field=name.replace("_", "-")) from error
    return chosen


def check_room(shape: Shape, index: int) -> None:
    """Raises InputError where the pod network has no subnet for the node of this index."""
    for network in shape.subnets_of:
        # Subnet 0 goes to the last of as many nodes as there are subnets.
        if index > 1 << (NODE_SUBNET[network.version] - network.prefixlen):
            raise InputError(
                f"{network} has no /{NODE_SUBNET[network.version]} for {index} nodes",
                field="network",
                remedy="choose a larger network with --network",
            )


def check(shape: Shape) -> None:
    """Raises InputError where the choices don't fit each other."""
    fabric, networks = shape.resolved, shape.network
    versions = tuple(network.version for network in networks)
    if versions != shape.versions:
        raise InputError(
            f"{', '.join(map(str, networks))} is not of family {shape.family}",
            field="network",
            remedy="give one CIDR of each family, or leave --family away",
        )
    for network in networks:
        if reason := profiles.not_for_pods(network):
            raise InputError(
                f"{network} can't be a pod network: {reason}",
                field="network",
                remedy="give one for private use, such as 10.244.0.0/16 or fd00:10:244::/48",
            )
        if any(network.overlaps(one) for one in RESERVED):
            raise InputError(
                f"{network} overlaps the underlay, which is in {' and '.join(map(str, RESERVED))}",
                field="network",
                remedy="choose another, such as "
                + ",".join(map(str, profiles.default_network(fabric, versions))),
            )
        longest = _longest_prefix(fabric, network)
        if network.prefixlen > longest:
            raise InputError(
                f"{network} is too small for {fabric.ipam}",
                field="network",
                remedy=f"choose one of /{longest} or shorter",
            )
        shortest = NODE_SUBNET[network.version] - _SUBNET_BITS
        if fabric.ipam == "node-subnet" and network.prefixlen < shortest:
            raise InputError(
                f"{network} is too large to be cut into /{NODE_SUBNET[network.version]} a node",
                field="network",
                remedy=f"choose one of /{shortest} or longer",
            )
    if fabric.mtu is not None and fabric.mtu < IPV6_MIN_MTU and 6 in versions:
        raise InputError(
            f"{fabric.mtu} is less than the {IPV6_MIN_MTU} bytes that IPv6 needs",
            field="mtu",
            remedy=f"choose {IPV6_MIN_MTU} or more, or --family ipv4",
        )
    if not 1.0 <= shape.node_grace_s <= 3600:
        raise InputError(
            f"{shape.node_grace_s:g} is not between 1 and 3600 seconds", field="node-grace"
        )


def _longest_prefix(fabric: Fabric, network: IPNetwork) -> int:
    """What leaves room for a few nodes: a subnet or block each, or some addresses of a range."""
    if fabric.ipam == "node-subnet":
        return NODE_SUBNET[network.version]
    if fabric.ipam == "blocks":
        return fabric.block_len if network.version == 4 else fabric.block_len6
    return network.max_prefixlen - 8


def parse_networks(text: str) -> tuple[IPNetwork, ...]:
    """`10.244.0.0/16,fd00:10:244::/48`, IPv4 first. Raises InputError."""
    found: dict[int, IPNetwork] = {}
    for part in text.split(","):
        try:
            network = ip_network(part.strip())
        except ValueError as error:
            raise InputError(
                str(error), field="network", remedy="give a CIDR such as 10.244.0.0/16"
            ) from error
        if network.version in found:
            raise InputError(f"{text} names two networks of one family", field="network")
        found[network.version] = network
    return tuple(found[version] for version in sorted(found))


def _check_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{value!r} is none of {', '.join(allowed)}", field=field)
