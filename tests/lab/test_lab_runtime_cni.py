"""The runtime's side of CNI: which file counts, what a plugin is given, and real plugins."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.lab.cni_network import (
    SUPPORTED_VERSIONS,
    Attachment,
    CniError,
    addresses,
    load_network,
    parse_network,
)
from podwire.lab.runtime_cni import CniRuntime

Json = dict[str, Any]

REFERENCE_PLUGINS = Path("/usr/lib/cni")

#: Writes down what it was given, and answers with a result that names itself.
RECORDER = """#!/bin/sh
input=$(cat)
name=$(basename "$0")
printf '%s\\n' "$CNI_COMMAND $name" >> "{log}/calls"
printf '%s' "$input" > "{log}/$CNI_COMMAND-$name.json"
env > "{log}/$CNI_COMMAND-$name.env"
if [ -e "{log}/fail-$CNI_COMMAND-$name" ]; then cat "{log}/fail-$CNI_COMMAND-$name"; exit 1; fi
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion": "1.1.0", "by": "'"$name"'"}}'
exit 0
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A directory with the plugins `first` and `second`, which record their calls in it."""
    for name in ("first", "second"):
        (tmp_path / name).write_text(RECORDER.format(log=tmp_path))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def conflist(*plugins: Json, **fields: Any) -> bytes:
    config = {"cniVersion": "1.1.0", "name": "net", "plugins": list(plugins), **fields}
    return json.dumps(config).encode()


CHAIN = conflist({"type": "first"}, {"type": "second", "capabilities": {"portMappings": True}})


def attachment(**fields: Any) -> Attachment:
    fields = {"container_id": "c1", "netns": "/run/netns/x", **fields}
    return Attachment(**fields)


def calls(plugins: Path) -> list[str]:
    path = plugins / "calls"
    return path.read_text().splitlines() if path.exists() else []


def given_to(plugins: Path, call: str) -> Json:
    document: Json = json.loads((plugins / f"{call}.json").read_text())
    return document


def runtime(plugins: Path) -> CniRuntime:
    return CniRuntime([plugins], plugins / "cache")


# -- configuration ---------------------------------------------------------------------------------


def test_the_file_that_sorts_first_counts(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_bytes(conflist({"type": "b"}, name="b"))
    (tmp_path / "10-a.conf").write_text('{"name": "a", "type": "a", "cniVersion": "0.4.0"}')
    (tmp_path / "00-ignored.txt").write_text("not a configuration")
    (tmp_path / ".10-a.conf.tmp").write_text("{")
    network = load_network(tmp_path)
    assert network is not None
    assert (network.name, network.version, network.plugins[0]["type"]) == ("a", "0.4.0", "a")


def test_no_file_is_no_network(tmp_path: Path) -> None:
    assert load_network(tmp_path) is None
    assert load_network(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"type": "x"}', "name: expected"),
        (b'{"name": "n", "plugins": []}', "plugins: expected a list"),
        (b'{"name": "n", "plugins": [{"type": "../sh"}]}', r"plugins\[0\].type"),
        (b'{"name": "n", "type": "x", "cniVersion": "9.0"}', "cniVersion: '9.0' is not one of"),
    ],
)
def test_a_bad_configuration_is_refused_by_its_field(raw: bytes, expected: str) -> None:
    with pytest.raises(CniError, match=expected):
        parse_network(raw)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "10-bad.conflist").write_text("{")
    with pytest.raises(CniError, match=r"10-bad\.conflist: not JSON"):
        load_network(tmp_path)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["x", "1.1.0", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)
_FIELDS = ("plugins", "cniVersion", "cniVersions", "capabilities", "disableGC", "disableCheck")
_CONFIGS = st.fixed_dictionaries(
    {"name": st.just("n") | _ANYTHING, "type": st.just("x") | _ANYTHING},
    optional=dict.fromkeys(_FIELDS, _ANYTHING),
)


@given(st.binary(max_size=50) | _CONFIGS.map(lambda value: json.dumps(value).encode()))
def test_any_file_gives_a_network_or_a_cni_error(raw: bytes) -> None:
    try:
        network = parse_network(raw)
    except CniError as error:
        assert error.message
    else:
        assert network.version in SUPPORTED_VERSIONS
        assert all(isinstance(plugin["type"], str) for plugin in network.plugins)


def test_the_highest_version_offered_counts() -> None:
    raw = conflist({"type": "x"}, cniVersion="0.3.1", cniVersions=["1.0.0", "0.4.0", "7.0.0"])
    assert parse_network(raw).version == "1.0.0"


def test_addresses_are_those_of_the_containers_interface() -> None:
    result = {
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.2/24", "interface": 1},
            {"address": "fd00::2/64"},
        ],
    }
    assert addresses(result, "eth0") == ["10.0.0.2", "fd00::2"]
    assert addresses({"ip4": {"ip": "10.0.0.3/24"}}, "eth0") == ["10.0.0.3"]


# -- what a plugin is given ------------------------------------------------------------------------


async def test_add_goes_forwards_and_hands_on_the_result(plugins: Path) -> None:
    result = await runtime(plugins).add(parse_network(CHAIN), attachment())
    assert calls(plugins) == ["ADD first", "ADD second"]
    assert result["by"] == "second"
    first, second = given_to(plugins, "ADD-first"), given_to(plugins, "ADD-second")
    assert first == {"type": "first", "name": "net", "cniVersion": "1.1.0"}
    assert second["prevResult"]["by"] == "first"


async def test_delete_goes_backwards_with_the_result_of_add(plugins: Path) -> None:
    cni, network = runtime(plugins), parse_network(CHAIN)
    await cni.add(network, attachment())
    await cni.delete(network, attachment(netns=""))
    assert calls(plugins)[2:] == ["DEL second", "DEL first"]
    assert given_to(plugins, "DEL-first")["prevResult"]["by"] == "second"
    assert "CNI_NETNS=\n" in (plugins / "DEL-first.env").read_text()
    assert cni.attachments("net") == []


async def test_delete_twice_and_without_add_is_fine(plugins: Path) -> None:
    cni, network = runtime(plugins), parse_network(CHAIN)
    await cni.delete(network, attachment())
    await cni.delete(network, attachment())
    assert "prevResult" not in given_to(plugins, "DEL-first")


async def test_versions_before_0_4_0_get_no_result_on_delete(plugins: Path) -> None:
    cni = runtime(plugins)
    network = parse_network(conflist({"type": "first"}, cniVersion="0.3.1"))
    await cni.add(network, attachment())
    await cni.delete(network, attachment())
    assert "prevResult" not in given_to(plugins, "DEL-first")


async def test_delete_uses_the_configuration_of_add(plugins: Path) -> None:
    cni = runtime(plugins)
    await cni.add(parse_network(conflist({"type": "first", "mtu": 1400})), attachment())
    await cni.delete(parse_network(conflist({"type": "second"})), attachment())
    assert calls(plugins)[-1] == "DEL first"
    assert given_to(plugins, "DEL-first")["mtu"] == 1400


async def test_environment_is_as_the_specification_says(plugins: Path) -> None:
    args = (("IgnoreUnknown", "1"), ("K8S_POD_NAME", "a"))
    await runtime(plugins).add(parse_network(CHAIN), attachment(args=args))
    given_env = (plugins / "ADD-first.env").read_text().splitlines()
    assert {line for line in given_env if line.startswith("CNI_")} == {
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=c1",
        "CNI_NETNS=/run/netns/x",
        "CNI_IFNAME=eth0",
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=a",
        f"CNI_PATH={plugins}",
    }


async def test_only_declared_capabilities_are_offered(plugins: Path) -> None:
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    capabilities = {"portMappings": ports, "mac": "02:00:00:00:00:01"}
    await runtime(plugins).add(parse_network(CHAIN), attachment(capabilities=capabilities))
    assert "runtimeConfig" not in given_to(plugins, "ADD-first")
    assert given_to(plugins, "ADD-second")["runtimeConfig"] == {"portMappings": ports}


async def test_the_result_is_kept_in_libcnis_format(plugins: Path) -> None:
    await runtime(plugins).add(parse_network(CHAIN), attachment())
    cached = json.loads((plugins / "cache/results/net-c1-eth0").read_text())
    assert cached["kind"] == "cniCacheV1"
    assert (cached["containerId"], cached["networkName"]) == ("c1", "net")
    assert base64.b64decode(cached["config"]) == CHAIN
    assert cached["result"]["by"] == "second"


async def test_a_plugins_error_keeps_its_code_and_words(plugins: Path) -> None:
    error = {"cniVersion": "1.1.0", "code": 11, "msg": "try again later", "details": "no agent"}
    (plugins / "fail-ADD-second").write_text(json.dumps(error))
    with pytest.raises(
        CniError, match=r'type="second" failed \(add\): try again later: no'
    ) as raised:
        await runtime(plugins).add(parse_network(CHAIN), attachment())
    assert raised.value.code == 11
    assert runtime(plugins).attachments("net") == [], "no result, nothing to keep"


async def test_a_plugin_that_says_nothing_of_use_is_reported_all_the_same(plugins: Path) -> None:
    (plugins / "fail-ADD-first").write_text("Segmentation fault")
    with pytest.raises(CniError, match="exit status 1"):
        await runtime(plugins).add(parse_network(CHAIN), attachment())


async def test_a_missing_plugin_is_named(plugins: Path) -> None:
    with pytest.raises(CniError, match='failed to find plugin "absent" in path'):
        await runtime(plugins).add(parse_network(conflist({"type": "absent"})), attachment())


async def test_gc_deletes_the_stale_and_names_the_valid(plugins: Path) -> None:
    cni, network = runtime(plugins), parse_network(conflist({"type": "first"}))
    for container in ("stale", "valid"):
        await cni.add(network, attachment(container_id=container))
    assert await cni.collect(network, [attachment(container_id="valid")]) == []
    assert calls(plugins)[2:] == ["DEL first", "GC first"]
    assert "CNI_CONTAINERID=stale" in (plugins / "DEL-first.env").read_text()
    valid = given_to(plugins, "GC-first")["cni.dev/valid-attachments"]
    assert valid == [{"containerID": "valid", "ifname": "eth0"}]
    assert [kept.container_id for kept in cni.attachments("net")] == ["valid"]


async def test_gc_goes_on_after_a_failure(plugins: Path) -> None:
    cni, network = runtime(plugins), parse_network(CHAIN)
    (plugins / "fail-GC-first").write_text('{"code": 7, "msg": "broken"}')
    errors = await cni.collect(network, [])
    assert [error.code for error in errors] == [7]
    assert calls(plugins) == ["GC first", "GC second"]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
async def test_gc_and_status_are_new_in_1_1_0(plugins: Path, version: str) -> None:
    network = parse_network(conflist({"type": "first"}, cniVersion=version))
    await runtime(plugins).status(network)
    assert await runtime(plugins).collect(network, []) == []
    assert calls(plugins) == []


async def test_status_is_the_first_refusal(plugins: Path) -> None:
    (plugins / "fail-STATUS-first").write_text('{"code": 50, "msg": "no lease yet"}')
    with pytest.raises(CniError, match="no lease yet") as raised:
        await runtime(plugins).status(parse_network(CHAIN))
    assert raised.value.code == 50


async def test_check_can_be_disabled(plugins: Path) -> None:
    cni = runtime(plugins)
    await cni.check(parse_network(conflist({"type": "first"}, disableCheck=True)), attachment())
    assert calls(plugins) == []
    with pytest.raises(CniError, match="does not support CHECK"):
        await cni.check(
            parse_network(conflist({"type": "first"}, cniVersion="0.3.1")), attachment()
        )


# -- the reference plugins -------------------------------------------------------------------------


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"t-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.root
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_reference_plugins_in_every_version(tmp_path: Path, netns: str, version: str) -> None:
    """`ptp` is given a bare pod namespace; its other end is made in a namespace of the test's."""
    assert (REFERENCE_PLUGINS / "ptp").exists(), "apt-get install containernetworking-plugins"
    assert version in SUPPORTED_VERSIONS
    ipam = {"type": "host-local", "subnet": "10.99.0.0/24", "dataDir": str(tmp_path / "ipam")}
    network = parse_network(
        conflist({"type": "ptp", "ipam": ipam}, {"type": "tuning"}, cniVersion=version)
    )
    cni = CniRuntime([REFERENCE_PLUGINS], tmp_path)
    attached = attachment(container_id=secrets.token_hex(32), netns=netns)
    with in_new_netns():
        result = await cni.add(network, attached)
        assert addresses(result, "eth0") == ["10.99.0.2"]
        if network.at_least("0.4.0"):
            await cni.check(network, attached)
        await cni.delete(network, attached)
        await cni.delete(network, attached)
    assert list((tmp_path / "ipam/net").glob("10.*")) == []


class in_new_netns:  # noqa: N801 - used like a function
    """This process is in a new network namespace for the block."""

    def __enter__(self) -> None:
        from podwire.lab import namespaces

        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.unshare(namespaces.NEW_NET)

    def __exit__(self, *exc_info: object) -> None:
        from podwire.lab import namespaces

        namespaces.enter(self._home, namespaces.NEW_NET)
        os.close(self._home)
