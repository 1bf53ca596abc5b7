"""The tunnel's process in real namespaces: what gets through, what does not, and what is told."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from podwire.model.tunnel import (
    Configure,
    Failed,
    RemovePeer,
    Request,
    SetPeer,
    Stop,
    TunnelPeer,
)
from podwire.tunnel import loop
from podwire.tunnel.endpoint import clear
from podwire.tunnel.lines import EARNED
from podwire.tunnel.noise import StaticKey
from tests.conftest import Namespace
from tests.tunnel.network import (
    KEYS,
    PATIENCE_S,
    Controller,
    Network,
    config_of,
    forge,
    inside,
    network,
    peer_of,
    until,
)
from tests.tunnel.packets import Packet, is_valid

pytestmark = pytest.mark.root

POD = {4: "10.244.2.2", 6: "fd00:244:2::2"}
POD_OF_ONE = "10.244.1.2"
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        made.start()
        yield made


def ping(where: Namespace, target: str, *options: str) -> str:
    return where.run(f"ping -n -c 1 -W 10 {' '.join(options)} {target}", check=False)


def transfer(net: Network, version: int, size: int) -> None:
    """A blob from pod1 to pod2 and back over TCP arrives as it was."""
    blob = random.Random(version).randbytes(size)
    with inside(net.two.pod):
        listener = socket.create_server((POD[version], 0), family=FAMILY[version])
    with inside(net.one.pod):
        client = socket.socket(FAMILY[version])

    def echo() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 18):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=echo, daemon=True)
    server.start()
    with listener, client:
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname()[:2])

        def send() -> None:
            client.sendall(blob)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        digest, received = hashlib.sha256(), 0
        while data := client.recv(1 << 18):
            digest.update(data)
            received += len(data)
        sender.join(PATIENCE_S)
        server.join(PATIENCE_S)
    assert received == size and digest.digest() == hashlib.sha256(blob).digest()


def exchange(net: Network, version: int, sizes: list[int]) -> None:
    """UDP datagrams of these sizes arrive as they were."""
    with inside(net.two.pod):
        receiver = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        receiver.bind((POD[version], 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.settimeout(PATIENCE_S)
    with inside(net.one.pod):
        sender = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    with sender, receiver:
        sender.connect(receiver.getsockname()[:2])
        for number, size in enumerate(sizes):
            sender.send(random.Random(number).randbytes(size))
        for number, size in enumerate(sizes):
            assert receiver.recv(1 << 16) == random.Random(number).randbytes(size)


@pytest.mark.parametrize("version", [4, 6])
def test_packets_pass_and_each_hop_counts(net: Network, version: int) -> None:
    assert "ttl=60" in ping(net.one.pod, POD[version])
    peer = net.one.stats().peers[0]
    assert peer.name == "node2" and peer.sent_packets and peer.received_packets
    assert peer.heard_s is not None and peer.heard_s < PATIENCE_S and peer.path_mtu == 1472


def test_those_whose_packets_it_moves_do_not_keep_it_waiting(net: Network) -> None:
    ready = net.configure(net.one)
    assert os.getpriority(os.PRIO_PROCESS, ready.pid) == -10


@pytest.mark.parametrize("version", [4, 6])
def test_streams_and_datagrams_arrive_as_they_were(net: Network, version: int) -> None:
    transfer(net, version, 8 << 20)
    exchange(
        net, version, [1, 64, 64, 64, 64, 64, 65, 1400, 1401, 1401, 1401, 1401, 0, 8000, 20000]
    )


@pytest.mark.parametrize(("version", "words"), [(4, "Time to live exceeded"), (6, "Hop limit")])
def test_an_expired_packet_is_answered_at_either_end(
    net: Network, version: int, words: str
) -> None:
    before = net.one.stats().drops["ttl_expired"], net.two.stats().drops["ttl_expired_inbound"]
    here = ping(net.one.pod, POD[version], "-t", "2")
    there = ping(net.one.pod, POD[version], "-t", "3")
    assert words in here and words in there
    after = net.one.stats().drops["ttl_expired"], net.two.stats().drops["ttl_expired_inbound"]
    assert after == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("target", "words"),
    [("10.244.9.9", "Destination Net Unreachable"), ("fd00:244:9::9", "No route")],
)
def test_a_destination_without_a_lease_is_unreachable(
    net: Network, target: str, words: str
) -> None:
    before = net.one.stats().drops["no_lease"]
    assert words in ping(net.one.pod, target)
    assert net.one.stats().drops["no_lease"] == before + 1


def test_the_wire_has_the_bare_packet(net: Network) -> None:
    """What another implementation, Flannel, sees and sends."""
    with inside(net.two.node):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(net.one.pod):
        pod = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other, pod:
        for one in (other, pod):
            one.settimeout(PATIENCE_S)
        other.bind(("192.0.2.3", 8285))
        pod.bind(("10.244.1.2", 0))
        port = pod.getsockname()[1]
        for size in (1, 100, 1400):
            pod.sendto(b"p" * size, ("10.244.3.2", 99))
            datagram, sender = other.recvfrom(2000)
            assert sender == ("192.0.2.1", 8285)
            assert datagram[0] == 0x45 and datagram[8] == 62 and is_valid(datagram)
            assert datagram[12:20] == bytes([10, 244, 1, 2, 10, 244, 3, 2])
            assert datagram[28:] == b"p" * size
        answer = Packet(
            protocol=17,
            payload=b"answer",
            source=bytes([10, 244, 3, 2]),
            target=bytes([10, 244, 1, 2]),
            sport=99,
            dport=port,
        )
        other.sendto(answer.data(), ("192.0.2.1", 8285))
        assert pod.recv(100) == b"answer"


def test_what_must_not_pass_is_counted(net: Network) -> None:
    good = Packet(
        protocol=17, payload=b"x", source=bytes([10, 244, 2, 2]), target=bytes([10, 244, 1, 2])
    )
    own, stranger = bytes([10, 244, 1, 9]), bytes([8, 8, 8, 8])
    attempts = {
        "not_a_peer": [
            (good.data(), "192.0.2.77", 8285),
            # Any pod's datagram, masqueraded to its node's address.
            (good.data(), "192.0.2.2", 40000),
        ],
        "foreign_source": [
            (replace(good, source=stranger).data(), "192.0.2.2", 8285),
            (replace(good, source=own).data(), "192.0.2.2", 8285),
            # Another peer's lease.
            (replace(good, source=bytes([10, 244, 3, 2])).data(), "192.0.2.2", 8285),
        ],
        "foreign_destination": [(replace(good, target=stranger).data(), "192.0.2.2", 8285)],
        "malformed": [
            (b"", "192.0.2.2", 8285),
            (b"\x45", "192.0.2.2", 8285),
            (good.data()[:-1], "192.0.2.2", 8285),
            (good.data() + b"\0", "192.0.2.2", 8285),
            (b"\x04" + good.data()[1:], "192.0.2.2", 8285),
        ],
    }
    before = net.one.stats().drops
    for datagrams in attempts.values():
        for payload, source, port in datagrams:
            forge(net.two.node, payload, source, port)
    expected = {name: before[name] + len(datagrams) for name, datagrams in attempts.items()}

    def counted() -> bool:
        after = net.one.stats().drops
        return {name: after[name] for name in expected} == expected

    until(counted, f"{before} did not become {expected}")


def test_a_flood_of_garbage_is_survived(net: Network) -> None:
    random_ = random.Random(1)
    good = Packet(source=bytes([10, 244, 2, 2]), target=bytes([10, 244, 1, 2]), payload=bytes(64))
    for _ in range(400):
        data = bytearray(good.data())
        for _ in range(random_.randrange(6)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        del data[random_.randrange(len(data)) :]
        forge(net.two.node, bytes(data))
    assert "ttl=60" in ping(net.one.pod, POD[4])


def sockets_to(net: Network, address: str) -> str:
    """Those of node1's tunnel that are connected there."""
    return net.one.node.run(f"ss -Hnu dst {address}:8285")


def test_a_peer_that_talks_much_has_a_socket_of_its_own(net: Network) -> None:
    data = Packet(
        protocol=17, source=bytes([10, 244, 3, 2]), target=bytes([10, 244, 1, 2]), payload=b"x"
    ).data()
    assert not sockets_to(net, "192.0.2.3")
    for _ in range(EARNED):
        forge(net.two.node, data, "192.0.2.3")
    until(lambda: "192.0.2.1:8285" in sockets_to(net, "192.0.2.3"), "no socket of its own")
    with inside(net.one.pod), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
        pod.bind(("10.244.1.2", 5201))
        pod.settimeout(PATIENCE_S)
        forge(net.two.node, data, "192.0.2.3")
        assert pod.recvfrom(100) == (b"x", ("10.244.3.2", 40000))
    # Nobody else's datagrams come by it.
    before = net.one.stats()
    forge(net.two.node, data, "192.0.2.3", 8286)
    forge(net.two.node, data, "192.0.2.2")
    until(
        lambda: all(
            net.one.stats().drops[name] == before.drops[name] + 1
            for name in ("not_a_peer", "foreign_source")
        ),
        "not counted",
    )
    net.one.tell(RemovePeer("node3"))
    assert not sockets_to(net, "192.0.2.3")
    net.configure(net.one)


def set_mtu(net: Network, mtu: int) -> None:
    """Of the underlay, at both ends of the link."""
    for end in (net.one, net.two):
        end.node.run(f"ip link set eth0 mtu {mtu}")


def test_a_smaller_path_is_told_to_whom_it_concerns(net: Network) -> None:
    set_mtu(net, 1300)
    try:
        told = ping(net.one.pod, POD[4], "-M", "do", "-s", "1400")
        assert "mtu = 1272" in told or "mtu=1272" in told, told
        assert "ttl=60" in ping(net.one.pod, POD[4], "-M", "do", "-s", str(1272 - 28))
        # Without DF, the tunnel's own datagrams are cut up instead.
        assert "ttl=60" in ping(net.one.pod, POD[4], "-M", "dont", "-s", "1400")
        transfer(net, 4, 1 << 20)
        # IPv6 has no path smaller than 1280 bytes.
        set_mtu(net, 1400)
        transfer(net, 6, 1 << 20)
        set_mtu(net, 1290)
        assert "ttl=60" in ping(net.one.pod, POD[6], "-s", str(1280 - 48))
    finally:
        set_mtu(net, 1500)
        for end in (net.one, net.two):
            end.pod.run("ip route flush cache; ip -6 route flush cache")


def test_it_goes_on_when_its_controller_goes_away(net: Network) -> None:
    assert net.one.controller is not None
    net.one.controller.close()
    assert "ttl=60" in ping(net.one.pod, POD[4])
    net.one.connect()
    first = net.one.controller
    newer = Controller(net.one.path)
    assert first.is_closed()
    net.one.controller = newer
    before = net.one.stats().peers[0].sent_packets
    net.configure(net.one)
    assert net.one.stats().peers[0].sent_packets == before
    # Nonsense is answered, and the connection is over; the tunnel is not.
    newer._socket.sendall(b"\0\0\0\x01\xc1")
    assert b"failed" in newer._socket.recv(4096) and newer.is_closed()
    net.one.connect()
    assert "ttl=60" in ping(net.one.pod, POD[4])


def test_peers_come_and_go(net: Network) -> None:
    net.one.tell(RemovePeer("node2"))
    assert "Net Unreachable" in ping(net.one.pod, POD[4])
    net.one.tell(SetPeer(peer_of(2)))
    assert "ttl=60" in ping(net.one.pod, POD[4])
    net.one.configure(config_of(1), peer_of(2))
    assert [peer.name for peer in net.one.stats().peers] == ["node2"]
    net.configure(net.one)


def test_what_is_wrong_is_refused_and_nothing_changes(net: Network) -> None:
    good = config_of(1)
    wrong: list[Request] = [
        SetPeer(TunnelPeer(name="x", subnets=(), address="nowhere")),
        Configure(structs.replace(good, local=("nowhere",))),
        Configure(structs.replace(good, local=("192.0.2.99",))),
        Configure(structs.replace(good, dev="nothere")),
        Configure(structs.replace(good, subnets=("10.0.0.1/8",))),
        Configure(structs.replace(good, require_encryption=True)),
        Configure(structs.replace(good, private_key=b"short")),
    ]
    for request in wrong:
        assert isinstance(net.one.ask(request), Failed)
    assert "ttl=60" in ping(net.one.pod, POD[4])


def test_killed_and_started_again_it_resumes(net: Network) -> None:
    assert net.one.process is not None
    net.one.process.send_signal(signal.SIGKILL)
    net.one.process.wait()
    assert "flannel0" in net.one.node.run("ip link show flannel0")
    # That nobody was there is told to the other end's next datagram, which is not lost by it.
    assert "100% packet loss" in net.two.pod.run(
        f"ping -n -c 3 -i 0.01 -W 0.1 {POD_OF_ONE}", check=False
    )
    net.one.start()
    net.configure(net.one)
    assert "ttl=60" in ping(net.two.pod, POD_OF_ONE)


def test_what_a_killed_one_left_is_cleared_away_and_nothing_of_one_that_runs(net: Network) -> None:
    assert net.one.process is not None
    lock = net.one.path.with_name(f"{net.one.path.name}.lock")
    assert net.one.path.exists() and lock.exists()
    assert not clear(net.one.path)
    assert net.one.path.exists() and lock.exists()
    net.one.process.send_signal(signal.SIGKILL)
    net.one.process.wait()
    assert clear(net.one.path)
    assert not net.one.path.exists() and not lock.exists()
    net.one.start()
    net.configure(net.one)
    assert "ttl=60" in ping(net.one.pod, POD[4])


def test_one_that_nobody_configures_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_FORLORN_S", 0.1)
    tunnel = loop.Tunnel(tmp_path / "tunnel.sock")
    tunnel.run()
    tunnel.close()
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_at_the_same_path_ends(net: Network) -> None:
    refused = net.one.node.run(
        f"{sys.executable} -m podwire.tunnel --socket {net.one.path} 2>&1; echo code $?"
    )
    assert "another tunnel runs here" in refused and "code 1" in refused
    assert "ttl=60" in ping(net.one.pod, POD[4])


def test_told_to_stop_it_ends_and_the_device_stays(net: Network) -> None:
    net.one.tell(Stop())
    assert net.one.process is not None and net.one.process.wait(PATIENCE_S) == 0
    assert not net.one.path.exists()
    assert not net.one.path.with_name(f"{net.one.path.name}.lock").exists()
    assert "flannel0" in net.one.node.run("ip link show flannel0")
    net.one.start()
    net.configure(net.one)
    assert "ttl=60" in ping(net.one.pod, POD[4])


def test_without_its_device_it_ends() -> None:
    with network() as net:
        net.start()
        net.one.node.run("ip link del flannel0")
        assert net.one.process is not None and net.one.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize(
    ("options", "version", "encrypt"),
    [
        (("--no-offloads",), 4, False),
        ((), 6, False),
        ((), 4, True),
        (("--no-offloads",), 6, True),
    ],
    ids=["packet by packet", "IPv6 underlay", "encrypted", "encrypted packet by packet over IPv6"],
)
def test_every_way_of_carrying(options: tuple[str, ...], version: int, encrypt: bool) -> None:
    with network() as net:
        net.start(*options, version=version, encrypt=encrypt)
        for inner in (4, 6):
            assert "ttl=60" in ping(net.one.pod, POD[inner])
            transfer(net, inner, 2 << 20)
            exchange(net, inner, [64] * 9 + [1300, 5000])
        if encrypt:
            good = Packet(protocol=17, source=bytes([10, 244, 2, 2]), target=bytes([10, 244, 1, 2]))
            if version == 4:
                forge(net.two.node, good.data())
                until(lambda: net.one.stats().encryption["not_encrypted"] == 1, "not counted")
            age = net.one.stats().peers[0].handshake_s
            assert age is not None and age < 2 * PATIENCE_S
            # A node with a copy of another's key is told, and is no matter to the others.
            copy = structs.replace(peer_of(3, encrypt=True), public_key=StaticKey(KEYS[1]).public)
            config = config_of(1, version=version, encrypt=True)
            ready = net.one.configure(config, copy, peer_of(2, version=version, encrypt=True))
            assert list(ready.refused) == ["node3"] and "node's own" in ready.refused["node3"]
            assert [peer.handshake_s is None for peer in net.one.stats().peers] == [False]
            net.one.tell(SetPeer(structs.replace(peer_of(2, version=version), public_key=None)))
            assert "Unreachable" in ping(net.one.pod, POD[4])
            assert net.one.drops()["no_public_key"] == 1
