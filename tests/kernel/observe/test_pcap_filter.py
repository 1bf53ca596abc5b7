"""Filters in tcpdump's words, run on packets; and what is said of those that are wrong."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from podwire.errors import InputError, UnsupportedError
from podwire.kernel import netns
from podwire.kernel.observe import pcap_filter
from podwire.kernel.observe.cbpf import Insn
from podwire.kernel.observe.frames import ETHERNET, LOOPBACK, NO_HEADER, FrameTap, RawFrame
from podwire.kernel.observe.pcap_filter import compile_filter, compile_for_all
from tests.conftest import Namespace
from tests.kernel.observe.conftest import MakeTun
from tests.kernel.observe.machine import run
from tests.kernel.observe.packets import ARP, arp, ethernet, ip, tcp, udp

DNS = ip("10.244.1.2", "10.96.0.10", 17, udp(40000, 53))
WEB = ip("fd00::1", "fd00::2", 6, tcp(40000, 80))
ASKS = (ARP, arp("10.244.1.2", "10.244.1.1"))


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", (DNS, WEB, ASKS)),
        ("udp port 53", (DNS,)),
        ("host 10.244.1.2", (DNS, ASKS)),
        ("ip6 and tcp dst port 80", (WEB,)),
        ("arp or ip6", (WEB, ASKS)),
        ("not port 53 and not arp", (WEB,)),
        ("ether dst 02:00:00:00:00:bb", (DNS, WEB, ASKS)),
        ("greater 1000", ()),
    ],
)
def test_it_means_what_tcpdump_means(text: str, passes: tuple[tuple[int, bytes], ...]) -> None:
    on_ethernet, on_lo = compile_filter(text, ETHERNET), compile_filter(text, LOOPBACK)
    on_all = compile_for_all(text)
    assert on_ethernet == on_lo
    for packet in (DNS, WEB, ASKS):
        frame = ethernet(*packet)
        assert bool(run(on_ethernet, frame)) == (packet in passes)
        for hatype in (ETHERNET, LOOPBACK):
            assert bool(run(on_all, frame, hatype=hatype)) == (packet in passes)


def test_packets_without_link_headers() -> None:
    bare, on_all = compile_filter("udp port 53", NO_HEADER), compile_for_all("udp port 53")
    for program in (bare, on_all):
        assert run(program, DNS[1], hatype=NO_HEADER)
        assert not run(program, WEB[1], hatype=NO_HEADER)
    assert not run(on_all, DNS[1], hatype=ETHERNET)


def test_what_only_ethernet_has_lets_nothing_bare_through() -> None:
    with pytest.raises(InputError, match="ethernet addresses supported only on ethernet"):
        compile_filter("ether host 02:00:00:00:00:bb", NO_HEADER)
    program = compile_for_all("ether host 02:00:00:00:00:bb")
    assert run(program, ethernet(*DNS), hatype=ETHERNET)
    assert not run(program, DNS[1], hatype=NO_HEADER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("udp prot 53", "syntax error"),
        ("net 10.0.0.0/33", "mask length must be <= 32"),
        ("port 99999", "illegal port number 99999 > 65535"),
        ("(udp", "syntax error"),
        ("tcp and udp", "expression rejects all packets"),
        ("udp\0port 53", "NUL"),
    ],
)
def test_libpcaps_message_is_passed_on(text: str, message: str) -> None:
    for wrong in (compile_filter, lambda text, _: compile_for_all(text)):
        with pytest.raises(InputError, match=message) as caught:
            wrong(text, ETHERNET)
        assert caught.value.field == "FILTER"
        assert caught.value.remedy


def test_a_filter_that_is_too_long_for_the_kernel_is_refused() -> None:
    hosts = " or ".join(f"host fd00::{number:x}" for number in range(600))
    with pytest.raises(InputError, match="instructions, and the kernel takes 4096"):
        compile_for_all(hosts)


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"udp port {port}" for port in range(1, 60)] + ["udp prot 1"] * 20

    def one(text: str) -> tuple[Insn, ...] | str:
        try:
            return compile_filter(text, ETHERNET)
        except InputError as error:
            return error.message

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, texts)) == [one(text) for text in texts]


def test_without_libpcap_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    pcap_filter._libpcap.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UnsupportedError) as caught:
        compile_filter("udp", ETHERNET)
    assert caught.value.remedy == "apt-get install libpcap0.8"


@pytest.mark.root
def test_the_kernel_takes_it_on_all_interfaces(
    namespace: Namespace, make_tun: MakeTun, make_namespace: Callable[[], Namespace]
) -> None:
    """One tap, TUN and loopback: what tcpdump -i any would show."""
    tun = make_tun(namespace, "tun0")
    fd = netns.open_netns(namespace.path)
    with FrameTap(fd, compile_for_all("udp port 53")) as tap:
        os.write(tun, WEB[1])
        os.write(tun, DNS[1])
        code = "import socket; socket.socket(2, 2).sendto(b'?', ('127.0.0.1', %d))"
        for port in (54, 53):
            command = ["ip", "netns", "exec", namespace.name, sys.executable, "-c", code % port]
            subprocess.run(command, check=True)
        seen: list[RawFrame] = []
        while len(seen) < 3:
            assert select.select([tap], [], [], 10)[0]
            seen += tap.read()
    os.close(fd)
    assert [(one.link_type, one.outgoing) for one in seen] == [
        (NO_HEADER, False),
        (LOOPBACK, True),
        (LOOPBACK, False),
    ]
    assert seen[0].data == DNS[1]
