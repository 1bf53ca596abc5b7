"""Entries in words: what `podwire plan` shows of the desired state, in iproute2's own order."""

from __future__ import annotations

from podwire.model.state import (
    Address,
    Blackhole,
    Bridge,
    Entry,
    FdbEntry,
    KeyPart,
    Link,
    Neighbor,
    NftElement,
    NftTable,
    PortFdbEntry,
    PortGuard,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    format_mac,
)


def kind_of(entry: Entry) -> str:
    """`link`, `address`, `route`, `neigh`, `fdb`, `sysctl`, `nft` or `tc`."""
    return _KINDS[type(entry)]


def describe(entry: Entry) -> str:
    """One line (an nft table: several) that says all of an entry but its why."""
    match entry:
        case Link():
            return _link(entry)
        case Address(dev=dev, ip=ip):
            return f"{ip} dev {dev}"
        case Neighbor(dev=dev, ip=ip, mac=mac):
            return f"{ip} lladdr {format_mac(mac)} dev {dev}"
        case FdbEntry(dev=dev, mac=mac, dst=dst):
            return f"{format_mac(mac)} dst {dst} dev {dev}"
        case PortFdbEntry(dev=dev, mac=mac):
            return f"{format_mac(mac)} dev {dev} master"
        case Blackhole(dst=dst):
            return f"blackhole {dst}"
        case Route(dst=dst, via=via, dev=dev, src=src, onlink=onlink):
            words = [str(dst)]
            words += [f"via {via}"] if via is not None else []
            words += [f"dev {dev}"]
            words += [f"src {src}"] if src is not None else []
            words += ["onlink"] if onlink else []
            return " ".join(words)
        case Sysctl(key=key, value=value):
            return f"{key.replace('/', '.')} = {value}"
        case NftTable():
            return _nft(entry)
        case NftElement(family=family, table=table, set=name, key=key):
            return f"{family} {table} {name} {{ {' . '.join(map(_part, key))} }}"
        case PortGuard(dev=dev, mac=mac, ips=ips, frames=frames):
            sender = f"{format_mac(mac)} " if frames else ""
            return f"{dev} ingress bpf: passes {sender}{', '.join(map(str, ips))}"


def _part(part: KeyPart) -> str:
    return format_mac(part) if isinstance(part, bytes) else str(part)


def _link(link: Link) -> str:
    words = [link.name]
    match link.kind:
        case Bridge():
            words.append("bridge")
        case Vxlan(vni=vni, port=port, local=local, dev=dev):
            words.append(f"vxlan id {vni} local {local} dev {dev} dstport {port}")
        case Veth(peer=peer):
            words.append(f"veth to {peer}")
        case Tun():
            words.append("tun")
    words += [f"master {link.master}"] if link.master is not None else []
    words += [f"mtu {link.mtu}"] if link.mtu is not None else []
    words += [f"address {format_mac(link.mac)}"] if link.mac is not None else []
    return " ".join(words)


def _nft(table: NftTable) -> str:
    lines = [f"{table.family} {table.name}"]
    lines += [f"  set {one.name} {{ {', '.join(one.elements)} }}" for one in table.sets]
    lines += [f"  set {one.name} of {one.type}" for one in table.open_sets]
    for chain in table.chains:
        where = f" ({chain.hook.type} {chain.hook.hook})" if chain.hook is not None else ""
        lines.append(f"  chain {chain.name}{where}")
        lines += [f"    {rule.text}" for rule in chain.rules]
    return "\n".join(lines)


_KINDS: dict[type, str] = {
    Link: "link",
    Address: "address",
    Neighbor: "neigh",
    FdbEntry: "fdb",
    PortFdbEntry: "fdb",
    Route: "route",
    Blackhole: "route",
    Sysctl: "sysctl",
    NftTable: "nft",
    NftElement: "nft",
    PortGuard: "tc",
}
