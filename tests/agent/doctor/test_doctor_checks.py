"""Parts of the doctor's checks that need no lab."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.agent.doctor import clock, disk, firewall, leftovers, mtu, run
from podwire.agent.doctor.measure import Path as MeasuredPath
from podwire.agent.doctor.measure import Target, _Scout
from podwire.agent.doctor.names import CHECKS
from podwire.agent.doctor.subject import Findings, Subject, named
from podwire.agent.doctor.ways import ways
from podwire.agent.files import subnet_env
from podwire.errors import InputError, PodwireError
from podwire.kernel.ruleset import read_ruleset
from podwire.model.cluster import Lease, NetworkConfig, Node, Underlay
from podwire.model.probe import Probe
from podwire.trace.records import ProbeResult
from podwire.trace.wire import Check, Checked
from tests.conftest import Namespace
from tests.e2e.waiting import until

NETWORK = NetworkConfig(
    node="node1",
    network=(ip_network("10.244.0.0/16"),),
    lease=Lease((ip_network("10.244.1.0/24"),), "vxlan", ip_address("172.18.0.11"), 1, bytes(6)),
    underlay=Underlay("eth0", ip_address("172.18.0.11"), 1500),
    mtu=1450,
)
PEER = Node(
    "node2",
    lease=Lease((ip_network("10.244.2.0/24"),), "vxlan", ip_address("172.18.0.12"), 1, bytes(6)),
)


def subject(**agent: Any) -> Subject:
    """A subject of which only what is given is there."""
    there = SimpleNamespace(config=SimpleNamespace(node_name="node1"), network=None, **agent)
    return Subject(agent=there, peers=(), fix=False, measure=lambda: None)  # type: ignore[arg-type,return-value]


async def findings(examination: AsyncIterator[Checked]) -> list[Checked]:
    return [one async for one in examination]


# --- running ----------------------------------------------------------------------------------


async def examined(*checks: str) -> list[Checked]:
    found: list[Checked] = []
    agent = SimpleNamespace(network=None, not_ready="it has no lease yet")
    await run.check(agent, Check(id=1, checks=checks), found.append)  # type: ignore[arg-type]
    return found


@pytest.fixture
def one_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an examination in the place of the one named `clock`."""

    def put(examine: Any) -> None:
        monkeypatch.setattr(run, "_EXAMINATIONS", {**run._EXAMINATIONS, "clock": examine})

    return put


async def test_every_check_has_an_examination() -> None:
    assert list(run._EXAMINATIONS) == list(CHECKS)


async def test_a_check_that_crashes_is_a_finding_of_its_own(one_check: Any) -> None:
    async def crash(_: Subject) -> AsyncIterator[Checked]:
        yield Findings("clock").ok("so far")
        raise RuntimeError("all is lost")

    one_check(crash)
    first, second = await examined("clock")
    assert first.level == "ok"
    assert (second.check, second.level) == ("clock", "fail")
    assert second.text == "the check itself failed: RuntimeError: all is lost"


async def test_what_a_check_could_not_do_is_told_with_its_remedy(one_check: Any) -> None:
    async def refuse(_: Subject) -> AsyncIterator[Checked]:
        raise PodwireError("no way", remedy="go round")
        yield Findings("clock").ok("")

    one_check(refuse)
    (finding,) = await examined("clock")
    assert finding.text == "the check could not be made: no way"
    assert finding.remedy == "go round"


async def test_a_check_that_hangs_is_given_up(
    one_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Subject) -> AsyncIterator[Checked]:
        await asyncio.Event().wait()
        yield Findings("clock").ok("")

    one_check(hang)
    monkeypatch.setattr(run, "_LIMIT_S", 0.01)
    (finding,) = await examined("clock")
    assert finding.text == "the check took longer than 0.01 s and was given up"


@pytest.mark.parametrize("check", ["forwarding", "tunnel", "mtu", "offload", "overlap"])
async def test_where_there_is_no_network_yet_nothing_is_fine(check: str) -> None:
    (finding,) = await examined(check)
    assert (finding.check, finding.level) == (check, "fail")
    assert "it has no lease yet" in finding.text


async def test_a_check_that_there_is_not() -> None:
    with pytest.raises(InputError, match="there is no check pulse"):
        await examined("pulse")


# --- the clock --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [
        (0.0, "ok", "within 1 s"),
        (-30.0, "warn", "s behind the API server's clock"),
        (30.0, "warn", "s ahead of the API server's clock"),
        (7200.0, "fail", "certificates and tokens"),
    ],
)
async def test_the_clock_is_compared_with_the_api_servers(
    ahead_s: float, level: str, words: str
) -> None:
    async def server_time() -> float:
        return float(int(time.time() - ahead_s))

    client = SimpleNamespace(server_time=server_time)
    (finding,) = await findings(clock.examine(subject(connected=True, client=client)))
    assert finding.level == level
    assert words in finding.text


async def test_an_api_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def server_time() -> float:
        await asyncio.Event().wait()
        return 0.0

    monkeypatch.setattr(clock, "_PATIENCE_S", 0.01)
    client = SimpleNamespace(server_time=server_time)
    (finding,) = await findings(clock.examine(subject(connected=True, client=client)))
    assert (finding.level, finding.text) == (
        "fail",
        "the API server has not answered within 0.01 s",
    )


# --- the search for the largest packet ---------------------------------------------------------


class Network(_Scout):
    """A network that carries packets of up to `carries` bytes, and counts what is sent."""

    def __init__(self, executor: ThreadPoolExecutor, carries: int) -> None:
        super().__init__(NETWORK, executor)
        self._carries = carries
        self.rounds = self.sent = 0

    async def _narrow(self, *arguments: Any) -> tuple[int, int]:
        before = self.sent
        found = await super()._narrow(*arguments)
        self.rounds += self.sent > before
        return found

    async def _shoot(self, probe: Probe, timeouts_s: tuple[float, ...] = ()) -> ProbeResult:
        self.sent += 1
        passes = (probe.size or 84) <= self._carries
        return ProbeResult(number=1, outcome="replied" if passes else "timeout")


@contextmanager
def network(carries: int) -> Iterator[Network]:
    with ThreadPoolExecutor(1) as executor:
        yield Network(executor, carries)


@settings(max_examples=30, deadline=None)
@given(carries=st.integers(84, 8999), size=st.integers(576, 9000))
def test_the_largest_packet_that_passes_is_found(carries: int, size: int) -> None:
    async def search() -> tuple[Target, int]:
        with network(carries) as scout:
            ip = ip_address("172.18.0.12")
            target = await scout._searched(await scout._target(ip, size), set())
            return target, scout.rounds

    target, rounds = asyncio.run(search())
    assert target.largest == (carries if carries < size else None)
    assert rounds <= 4


async def test_what_one_peer_has_shown_is_tried_first_with_the_next() -> None:
    with network(1400) as scout:
        known = {1400}
        target = await scout._target(ip_address("172.18.0.12"), 1500)
        assert (await scout._searched(target, known)).largest == 1400
        assert scout.rounds == 1


async def test_a_peer_that_is_dead_is_not_waited_for_more_than_once() -> None:
    with network(0) as scout:
        target = await scout._target(ip_address("172.18.0.12"), 1500)
        assert (target.lost, target.answers, target.carries) == (True, False, False)
        assert await scout._searched(target, set()) == target
        assert scout.sent == 1


async def test_a_full_packet_that_is_lost_by_bad_luck_is_none_too_large() -> None:
    with network(1500) as scout:
        target = await scout._target(ip_address("172.18.0.12"), 1500)
        unlucky = msgspec.structs.replace(target, full=ProbeResult(number=1, outcome="timeout"))
        assert await scout._searched(unlucky, set()) == target


LOST_QUESTIONS = {
    "172.18.0.12": "table arp lost { chain input { type filter hook input priority 0;"
    " arp operation request limit rate 1/day burst 1 packets drop; }; }",
    "fd00:172::2": "table ip6 lost { chain input { type filter hook input priority 0;"
    " icmpv6 type nd-neighbor-solicit ip6 saddr fd00:172::1"
    " limit rate 1/day burst 1 packets drop; }; }",
}


@pytest.mark.root
@pytest.mark.parametrize("address", LOST_QUESTIONS)
async def test_a_peer_answers_although_the_first_question_for_its_mac_was_lost(
    address: str, inside: Namespace, make_namespace: Callable[[], Namespace]
) -> None:
    peer = make_namespace()
    inside.run(
        f"ip link add eth0 type veth peer name eth0 netns {peer.name};"
        " ip address add 172.18.0.11/16 dev eth0; ip address add fd00:172::1/64 dev eth0 nodad"
    )
    peer.run(
        "ip address add 172.18.0.12/16 dev eth0; ip address add fd00:172::2/64 dev eth0 nodad;"
        f" nft '{LOST_QUESTIONS[address]}'; ip link set eth0 up"
    )
    inside.run("ip link set eth0 up")
    until(lambda: "LOWER_UP" in inside.run("ip -br link show eth0"), "the cable carries")
    with ThreadPoolExecutor(2) as executor:
        target = await _Scout(NETWORK, executor)._target(ip_address(address), 1500)
    assert target.carries


@pytest.mark.root
async def test_larger_packets_vanish_or_are_answered_by_a_router_that_is_too_narrow(
    inside: Namespace, make_namespace: Callable[[], Namespace]
) -> None:
    router, peer = make_namespace(), make_namespace()
    inside.run(
        f"ip link add eth0 type veth peer name near netns {router.name};"
        " ip address add 172.18.1.11/24 dev eth0; ip link set eth0 up;"
        " ip route add default via 172.18.1.1"
    )
    router.run(
        f"ip link add far mtu 1400 type veth peer name eth0 netns {peer.name};"
        " ip address add 172.18.1.1/24 dev near; ip address add 172.18.2.1/24 dev far;"
        " ip link set near up; ip link set far up; sysctl -qw net.ipv4.ip_forward=1"
    )
    peer.run(
        "ip address add 172.18.2.12/24 dev eth0; ip link set eth0 up;"
        " ip route add default via 172.18.2.1"
    )
    (way,) = ways(NETWORK, (PEER,))

    async def told() -> str:
        with ThreadPoolExecutor(16) as executor:
            scout = _Scout(NETWORK, executor)
            found = await scout._target(ip_address("172.18.2.12"), 1500)
            found = await scout._searched(found, set())
        narrow = mtu._narrow(MeasuredPath(way, found, None))
        assert narrow is not None
        return mtu._too_small(NETWORK, narrow, ["node2"]).text

    carried = (
        "the network to node2 carries packets of 1400 bytes, not the 1500 of eth0: larger ones"
    )
    assert await told() == f"{carried} are answered with ICMP errors"
    router.run(
        "nft 'table ip quiet { chain out { type filter hook output priority 0;"
        " icmp type destination-unreachable drop; }; }'"
    )
    assert await told() == f"{carried} vanish"


# --- firewalls of ordinary hosts --------------------------------------------------------------

#: What stops pods' packets, by who made the rules: all, for sure, or nothing.
HOSTS = {
    "firewalld": (
        """nft 'table inet firewalld {
          chain filter_FORWARD { type filter hook forward priority 10;
            ct state { established, related } accept; ct status dnat accept; iifname "lo" accept
            ct state invalid drop; jump zones; reject with icmpx admin-prohibited; }
          chain zones { iifname "eth0" goto public; goto public; }
          chain public { meta l4proto { icmp, ipv6-icmp } accept; tcp dport 22 accept; }
          chain rpfilter { type filter hook prerouting priority -140;
            meta nfproto ipv4 fib saddr . mark . iif oif missing drop; }; }'""",
        "a rule in inet firewalld filter_FORWARD: reject with icmpx admin-prohibited",
    ),
    "ufw": (
        "iptables -P FORWARD DROP; iptables -N ufw-before-forward;"
        " iptables -A FORWARD -j ufw-before-forward; iptables -A ufw-before-forward"
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT;"
        " iptables -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT;"
        " iptables -A FORWARD -m limit --limit 3/min -j LOG",
        "the policy of iptables FORWARD",
    ),
    "docker and kube-proxy": (
        "iptables -P FORWARD DROP; iptables -N KUBE-FORWARD; iptables -A FORWARD -j KUBE-FORWARD;"
        " iptables -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP;"
        " iptables -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT;"
        " iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER;"
        " iptables -A DOCKER-USER -j RETURN; iptables -A FORWARD -o docker0 -j ACCEPT;"
        " iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "the policy of iptables FORWARD",
    ),
    "kube-proxy": (
        "iptables -N KUBE-FORWARD; iptables -A FORWARD -j KUBE-FORWARD;"
        " iptables -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP;"
        " iptables -N KUBE-FIREWALL; iptables -A INPUT -j KUBE-FIREWALL;"
        " iptables -A FORWARD -d 10.96.0.1/32 -p tcp --dport 443 -j REJECT;"
        " iptables -A FORWARD -p tcp -m addrtype --dst-type LOCAL --dport 30000 -j REJECT;"
        " iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        "",
    ),
    "a reverse-path filter in nft": (
        """nft 'table inet fw { chain rpfilter { type filter hook prerouting priority -160;
          policy drop; udp sport . udp dport { 67 . 68 } accept
          fib saddr . mark . iif oif exists accept; }; }'""",
        "",
    ),
}


@pytest.mark.root
@pytest.mark.parametrize("host", HOSTS)
def test_what_an_ordinary_host_does_to_pods_packets(host: str, inside: Namespace) -> None:
    rules, stops = HOSTS[host]
    inside.run(rules)
    ruleset = read_ruleset(firewall.FORWARD_HOOKS)
    found = firewall.forwarded_and_stopped(NETWORK, ruleset, ways(NETWORK, (PEER,)), ("cni0",))
    assert [firewall.culprit(ruling).text for ruling, _ in found] == [stops] * bool(stops)
    for ruling, packets in found:
        assert ruling.unless is None
        told = [what for what, _ in packets]
        assert told[:3] == ["to other nodes", "from other nodes", "to outside"]


# --- leftovers --------------------------------------------------------------------------------


def test_a_lease_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    assert list(leftovers._subnet_file(path, NETWORK)) == []
    path.write_text("FLANNEL_NETWORK=10.5.0.0/16\n")
    (finding,) = leftovers._subnet_file(path, NETWORK)
    assert finding.level == "warn"
    path.write_text(subnet_env(NETWORK))
    assert list(leftovers._subnet_file(path, NETWORK)) == []


def test_a_configuration_that_is_none_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "00-broken.conf").write_text("{")
    (tmp_path / "05-notes.txt").write_text("not one")
    (tmp_path / "10-podwire.conflist").write_text("{}")
    (tmp_path / "20-other.conf").write_text('{"type": "other"}')
    (finding,) = leftovers._confs(tmp_path)
    assert "00-broken.conf (can't be read)" in finding.text


def test_a_configuration_that_chains_ours_is_no_other_network(tmp_path: Path) -> None:
    chain = b'{"plugins": [{"type": "podwire"}, {"type": "portmap"}]}'
    (tmp_path / "05-chain.conflist").write_bytes(chain)
    (tmp_path / "06-other.conf").write_text('{"type": "other"}')
    assert not list(leftovers._confs(tmp_path))


def test_a_file_s_name_is_never_a_command(tmp_path: Path) -> None:
    name = "00; reboot .conf"
    (tmp_path / name).touch()
    (finding,) = leftovers._confs(tmp_path)
    assert finding.lines == (f"mv '{tmp_path / name}' '{tmp_path / name}.off'",)


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_names_in_a_sentence(names: list[str], words: str) -> None:
    assert named(names) == words


# --- the disk ---------------------------------------------------------------------------------


@pytest.mark.root
def test_a_disk_that_takes_no_writes_is_told_with_the_remedy(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=True)
    try:
        few = disk.look(tmp_path)
        assert few is not None
        assert (few.level, "KiB left" in few.text) == ("warn", True)
        with pytest.raises(OSError, match="No space"), (tmp_path / "taken").open("wb") as file:
            file.write(bytes(1 << 21))
        full = disk.look(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        read_only = disk.look(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    for found, why in ((full, "No space left on device"), (read_only, "Read-only file system")):
        assert found is not None
        assert (found.check, found.level) == ("agent", "fail")
        assert why in found.text
        assert found.remedy
        assert str(tmp_path) in found.lines[0]
    assert disk.look(tmp_path) is None
