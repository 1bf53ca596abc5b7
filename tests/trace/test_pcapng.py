"""The capture format: block by block, and as tshark understands it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.trace.pcapng import PcapngWriter
from tests.kernel.observe.packets import ethernet, icmp, ip, vxlan

T0 = 1_700_000_000_123_456_789
ETHERNET, TUN = 1, 65534


class Block(NamedTuple):
    kind: int
    body: bytes


def blocks(data: bytes) -> Iterator[Block]:
    offset = 0
    while offset < len(data):
        kind, size = struct.unpack_from("<II", data, offset)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, offset + size - 4) == (size,)
        yield Block(kind, data[offset + 8 : offset + size - 4])
        offset += size
    assert offset == len(data)


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Options or records of names, to their end."""
    found = []
    offset = 0
    while offset < len(data):
        kind, size = struct.unpack_from("<HH", data, offset)
        if (kind, size) == (0, 0):
            assert offset + 4 == len(data)
            break
        found.append((kind, data[offset + 4 : offset + 4 + size]))
        offset += 4 + size + (-size & 3)
    return found


def test_a_section_says_what_it_was_captured_with() -> None:
    (block,) = blocks(PcapngWriter().section(hardware="x", os="Linux", application="podwire"))
    assert block.kind == 0x0A0D0D0A
    assert struct.unpack("<IHHq", block.body[:16]) == (0x1A2B3C4D, 1, 0, -1)
    assert fields(block.body[16:]) == [(2, b"x"), (3, b"Linux"), (4, b"podwire")]
    (bare,) = blocks(PcapngWriter().section())
    assert bare.body[16:] == b""


def test_names_of_both_families() -> None:
    given_names = {"10.244.1.2": ["pod1.default", "web"], "fd00::1": ["node1"]}
    (block,) = blocks(PcapngWriter().names(given_names))
    assert block.kind == 4
    assert fields(block.body) == [
        (1, bytes([10, 244, 1, 2]) + b"pod1.default\0web\0"),
        (2, bytes.fromhex("fd00") + bytes(13) + b"\1node1\0"),
    ]


def test_interfaces_are_numbered_in_their_order() -> None:
    writer = PcapngWriter()
    first, one = writer.interface(
        "node1/cni0", ETHERNET, description="bridge", filter_text="icmp", snaplen=96,
        mac="02:00:00:00:00:01", comment="of node1",
    )  # fmt: skip
    second, other = writer.interface("node1/tun0", TUN)
    third, strange = writer.interface("node1/ib0", 32)
    assert (first, second, third) == (0, 1, 2)
    (block,) = blocks(one)
    assert block.kind == 1
    assert struct.unpack("<HHI", block.body[:8]) == (1, 0, 96)
    assert fields(block.body[8:]) == [
        (2, b"node1/cni0"),
        (3, b"bridge"),
        (6, b"\2\0\0\0\0\1"),
        (9, b"\x09"),
        (11, b"\0icmp"),
        (1, b"of node1"),
    ]
    (block,) = blocks(other)
    assert struct.unpack("<HHI", block.body[:8]) == (101, 0, 0)
    (block,) = blocks(strange)
    assert struct.unpack("<HHI", block.body[:8]) == (147, 0, 0)


@settings(max_examples=50)
@given(
    data=st.binary(max_size=70),
    time_ns=st.integers(0, (1 << 64) - 1),
    outgoing=st.sampled_from([None, True, False]),
    comments=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9),
        max_size=3,
    ),
    lost=st.integers(0, 1 << 40),
)
def test_packets_come_back_as_they_were(
    data: bytes, time_ns: int, outgoing: bool | None, comments: list[str], lost: int
) -> None:
    writer = PcapngWriter()
    writer.interface("a", ETHERNET)
    (block,) = blocks(
        writer.packet(0, time_ns, data, 1500, outgoing=outgoing, comments=comments, lost=lost)
    )
    assert block.kind == 6
    interface, high, low, kept, length = struct.unpack("<IIIII", block.body[:20])
    assert (interface, high << 32 | low, kept, length) == (0, time_ns, len(data), 1500)
    assert block.body[20 : 20 + kept] == data
    expected = [] if outgoing is None else [(2, struct.pack("<I", 2 if outgoing else 1))]
    expected += [(4, struct.pack("<Q", lost))] if lost else []
    expected += [(1, text.encode()) for text in comments]
    assert fields(block.body[20 + kept + (-kept & 3) :]) == expected


def test_statistics_count_what_got_no_room() -> None:
    writer = PcapngWriter()
    writer.interface("a", ETHERNET)
    (block,) = blocks(writer.statistics(0, T0, received=5, lost=2))
    assert block.kind == 5
    assert struct.unpack("<III", block.body[:12]) == (0, T0 >> 32, T0 & 0xFFFFFFFF)
    assert fields(block.body[12:])[1:] == [
        (4, struct.pack("<Q", 5)),
        (5, struct.pack("<Q", 2)),
    ]


def test_text_that_is_too_long_is_cut_between_characters() -> None:
    writer = PcapngWriter()
    _, data = writer.interface("é" * 40_000, ETHERNET)
    (block,) = blocks(data)
    (_, name), *_ = fields(block.body[8:])
    assert name.decode() == "é" * (0xFFF0 // 2)


def test_a_packet_of_no_interface_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no interface 0"):
        PcapngWriter().packet(0, T0, b"", 0)


# --- tshark -----------------------------------------------------------------------------------


def echo(number: int) -> tuple[int, bytes]:
    return ip("10.244.1.2", "10.244.2.2", 1, icmp(8, 7 << 16 | number, b"podw"))


def capture() -> bytes:
    """Two nodes, a pod, a TUN; the tunnel's interface only turns up in the middle."""
    writer = PcapngWriter()
    parts = [
        writer.section(
            hardware="x86_64", os="Linux 6.1", application="podwire 0.1", comment="demo"
        ),
        writer.names({"10.244.1.2": ["pod1.default"], "10.244.2.2": ["pod2.default"]}),
        writer.names({"172.18.0.11": ["node1"], "172.18.0.12": ["node2"]}),
    ]
    pod, block = writer.interface("pod:default/pod1/eth0", ETHERNET, description="pod default/pod1")
    parts.append(block)
    frame = ethernet(*echo(1))
    parts.append(
        writer.packet(pod, T0, frame, len(frame), outgoing=True, comments=["pod1 → pod2", "hop 1"])
    )
    node, block = writer.interface("node1/eth0", ETHERNET, filter_text="icmp", snaplen=2048)
    parts.append(block)
    outer = ethernet(*ip("172.18.0.11", "172.18.0.12", 17, vxlan(frame)))
    parts.append(writer.packet(node, T0 + 5001, outer, len(outer), outgoing=True))
    tun, block = writer.interface("node2/tun0", TUN)
    parts.append(block)
    packet = echo(2)[1]
    parts.append(writer.packet(tun, T0 + 9000, packet[:30], 1500, outgoing=False, lost=4))
    parts.append(writer.packet(pod, T0 + 10_000, frame, len(frame)))
    parts.append(writer.statistics(node, T0 + 20_000, received=1, lost=4))
    return b"".join(parts)


def tshark(file: Path, *options: str) -> list[list[str]]:
    if shutil.which("tshark") is None:
        pytest.fail("tshark is not installed: run script/setup --dev")
    home = {"HOME": str(file.parent), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["tshark", "-r", str(file), "-N", "n", "-d", "udp.port==8472,vxlan", *options],
        capture_output=True, text=True, env=home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_the_address_of_a_device_that_is_no_mac_is_left_out() -> None:
    for mac, there in (("02:00:00:00:00:01", True), ("0a:00:00:01", False), ("", False)):
        writer = PcapngWriter()
        _, data = writer.interface("tunl0", 768, mac=mac)
        (block,) = blocks(data)
        assert (6 in dict(fields(block.body[8:]))) == there


@pytest.mark.slow
def test_tshark_shows_all_names(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    file.write_bytes(capture())
    wanted = (
        "frame.interface_id", "frame.interface_name", "frame.time_epoch", "frame.len",
        "frame.cap_len", "frame.packet_flags_direction", "frame.comment", "ip.src_host",
        "ip.dst_host", "frame.drop_count",
    )  # fmt: skip
    options = [word for field in wanted for word in ("-e", field)]
    pod, node, tun = "pod:default/pod1/eth0", "node1/eth0", "node2/tun0"
    one, other = "pod1.default", "pod2.default"
    assert tshark(file, "-T", "fields", *options) == [
        ["0", pod, "1700000000.123456789", "46", "46", "0x00000002", "pod1 → pod2,hop 1",
         one, other, ""],
        ["1", node, "1700000000.123461790", "96", "96", "0x00000002", "",
         f"node1,{one}", f"node2,{other}", ""],
        ["2", tun, "1700000000.123465789", "1500", "30", "0x00000001", "", one, other, "4"],
        ["0", pod, "1700000000.123466789", "46", "46", "", "", one, other, ""],
    ]  # fmt: skip
    lines = ["\t".join(line) for line in tshark(file)]
    assert "pod1.default → pod2.default ICMP" in lines[0]


@pytest.mark.slow
def test_a_capture_that_is_cut_off_is_read_to_there(tmp_path: Path) -> None:
    whole = capture()
    kinds = [block.kind for block in blocks(whole)]
    assert kinds.count(6) == 4
    ends = [0]
    for block in blocks(whole):
        ends.append(ends[-1] + len(block.body) + 12)
    file = tmp_path / "cut.pcapng"
    until = ends[kinds.index(6) + 1]
    file.write_bytes(whole[:until])
    assert len(tshark(file)) == 1
