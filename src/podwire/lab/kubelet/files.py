"""The files that a kubelet writes for each pod: /etc/hosts, /etc/resolv.conf, /etc/hostname.

Pure: spec in, text out. Source: pkg/kubelet/kubelet_pods.go (ensureHostsFile) and
pkg/kubelet/network/dns/dns.go of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire.lab.kubelet.spec import DnsConfig, Pod

CLUSTER_DOMAIN = "cluster.local"
CLUSTER_DNS = "10.96.0.10"
"""Where the cluster's DNS Service is to be; nobody answers there before Services exist."""


def hosts(pod: Pod, ips: Sequence[str]) -> str:
    """/etc/hosts of a pod, whose own name resolves to its IPs."""
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
        *(f"{ip}\t{pod.hostname}" for ip in ips),
    ]
    if pod.spec.host_aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += [f"{alias.ip}\t" + "\t".join(alias.hostnames) for alias in pod.spec.host_aliases]
    return "\n".join(lines) + "\n"


def resolv_conf(pod: Pod, node: str) -> str:
    """/etc/resolv.conf of a pod; `node` is the content of the node's own.

    `ClusterFirst` on the host's network is `Default`, as with a real kubelet.
    """
    policy = pod.spec.dns_policy
    if policy == "ClusterFirst" and pod.spec.host_network:
        policy = "Default"
    if policy == "None":
        return _render(pod.spec.dns_config, (), (), ())
    if policy == "Default":
        nameservers, searches, options = _parse(node)
        return _render(pod.spec.dns_config, nameservers, searches, options)
    searches = (
        f"{pod.metadata.namespace}.svc.{CLUSTER_DOMAIN}",
        f"svc.{CLUSTER_DOMAIN}",
        CLUSTER_DOMAIN,
    )
    return _render(pod.spec.dns_config, (CLUSTER_DNS,), searches, ("ndots:5",))


_Words = tuple[str, ...]


def _parse(text: str) -> tuple[_Words, _Words, _Words]:
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in found:
            found[words[0]] += words[1:]
    return tuple(found["nameserver"]), tuple(found["search"]), tuple(found["options"])


def _render(config: DnsConfig, nameservers: _Words, searches: _Words, options: _Words) -> str:
    """What the policy gives, then what the pod adds, once each; its options win."""
    own = {option.name: option for option in config.options}
    merged = [option for option in options if option.partition(":")[0] not in own]
    merged += [
        name if option.value is None else f"{name}:{option.value}" for name, option in own.items()
    ]
    lines = []
    if all_searches := dict.fromkeys((*searches, *config.searches)):
        lines.append("search " + " ".join(all_searches))
    lines += [f"nameserver {ip}" for ip in dict.fromkeys((*nameservers, *config.nameservers))]
    if merged:
        lines.append("options " + " ".join(merged))
    return "".join(f"{line}\n" for line in lines)
