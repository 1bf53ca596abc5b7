"""The marking rules against the kernel, packet by packet: a probe's are traced, others are not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from podwire.kernel import netns
from podwire.kernel.observe import nft_match
from podwire.kernel.observe.nft_trace import NftTap
from podwire.model.probe import ProbeMatch
from tests.conftest import Namespace
from tests.kernel.observe.conftest import MakeTun
from tests.kernel.observe.packets import ARP, Sample, samples

V4 = {"source": "10.244.1.2", "target": "10.244.2.2"}
V6 = {"source": "fd00::2", "target": "fd00:2::2"}


def match(protocol: str, ends: dict[str, str], **more: Any) -> ProbeMatch:
    port = None if protocol == "icmp" else 443
    fields: dict[str, Any] = {"protocol": protocol, "ident": 0xA1B2, "port": port, **ends}
    return ProbeMatch(**(fields | more))


MATCHES = [
    match("icmp", V4, neighbors=("10.244.1.2", "fd00::2"), bare_ports=(8285,)),
    match("icmp", V6, neighbors=("10.244.1.2", "fd00::2"), bare_ports=(8285,)),
    match("tcp", V4),
    match("tcp", V6, translated=True, bare_ports=(8285,)),
    match("udp", V4, translated=True, tunnel_ports=(8285, 8472)),
    match("udp", V6, tunnel_ports=()),
]


def is_out_of_reach(one: ProbeMatch, sample: Sample) -> bool:
    """What the module's docstring says is not matched: what has no fixed place in the packet."""
    name = sample.name
    tunnelled = "in VXLAN" in name or "in UDP" in name
    within = "error about" in name or tunnelled
    tunnel_in_error = name.startswith("error about") and tunnelled
    extended = "options" in name or (" first" in name and ":" in one.source)
    return tunnel_in_error or (within and extended)


@pytest.mark.root
@pytest.mark.parametrize("one", MATCHES, ids=lambda one: f"{one.protocol}-{one.source}")
def test_the_kernel_traces_exactly_the_probes_packets(
    namespace: Namespace, one: ProbeMatch, make_tun: MakeTun
) -> None:
    tun = make_tun(namespace, "tun0")
    namespace.run(
        "nft 'add table inet t; add chain inet t p { type filter hook prerouting priority 0; };"
        " add rule inet t p drop'"
    )
    fd = netns.open_netns(namespace.path)
    wrong = []
    with NftTap(fd, one) as tap:
        for sample in samples(one):
            if sample.ethertype == ARP or is_out_of_reach(one, sample):
                continue
            os.write(tun, sample.data)  # It has met the rules when this returns.
            traced = bool(tap.read())
            expected = sample.matches and (bool(one.tunnel_ports) or "in VXLAN" not in sample.name)
            if traced != expected:
                wrong.append(sample.name)
    os.close(fd)
    assert wrong == []


def test_ends_of_different_families_are_refused() -> None:
    with pytest.raises(ValueError, match="different families"):
        nft_match.chains(match("icmp", {"source": "10.0.0.1", "target": "fd00::1"}))
