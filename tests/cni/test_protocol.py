"""Environment and stdin to a request or an error object, for every version and command; no root."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.cni import protocol
from podwire.cni.types import SUPPORTED_VERSIONS, CniError, Command, Request
from podwire.ipam.record import PodIdentity

ENV = {
    "CNI_CONTAINERID": "3f6940ab5ab4",
    "CNI_NETNS": "/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}


def parse(command: str, conf: object = None, **env: str) -> Request:
    variables = {"CNI_COMMAND": command, **ENV, **env}
    body = CONF if conf is None else conf
    return protocol.parse_request(variables, json.dumps(body).encode())


def refused(command: str, conf: object = None, **env: str) -> CniError:
    with pytest.raises(CniError) as caught:
        parse(command, conf, **env)
    return caught.value


def conf(**more: Any) -> dict[str, Any]:
    return {**CONF, **more}


CONF: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "podwire",
    "type": "podwire",
    "prevResult": {"interfaces": []},
    "cni.dev/valid-attachments": [],
}


@pytest.mark.parametrize("command", list(Command))
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_every_command_in_every_version(command: str, version: str) -> None:
    if version < SINCE.get(command, "0.3.1"):
        error = refused(command, conf(cniVersion=version))
        assert error.code == 1
        assert error.message == (
            f"cniVersion {version} has no {command}; it came with {SINCE[command]}"
        )
    else:
        request = parse(command, conf(cniVersion=version))
        assert (request.command, request.version) == (command, version)


def test_what_kubelet_sends() -> None:
    request = parse(
        "ADD",
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;"
        "K8S_POD_INFRA_CONTAINER_ID=3f6940ab5ab4;K8S_POD_UID=0b1c;SOMETHING=else",
    )
    assert request.key == ("3f6940ab5ab4", "eth0")
    assert request.netns == "/run/netns/cni-1"
    assert request.pod == PodIdentity("shop", "web-0", "0b1c")
    assert str(request.pod) == "shop/web-0"


def test_what_podman_sends() -> None:
    request = parse("ADD", CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=web")
    assert request.pod == PodIdentity("", "web", "")
    assert str(request.pod) == "web"


@pytest.mark.parametrize(
    ("command", "missing", "message"),
    [
        ("ADD", ["CNI_NETNS"], "are missing: CNI_NETNS"),
        ("ADD", ["CNI_CONTAINERID", "CNI_IFNAME"], "are missing: CNI_CONTAINERID, CNI_IFNAME"),
        ("CHECK", ["CNI_NETNS"], "are missing: CNI_NETNS"),
        ("DEL", ["CNI_IFNAME"], "are missing: CNI_IFNAME"),
        ("", [], "are missing: CNI_COMMAND"),
        ("FROB", [], "unknown command 'FROB'; known are ADD, DEL, CHECK, VERSION, STATUS, GC"),
    ],
)
def test_the_environment_is_checked(command: str, missing: list[str], message: str) -> None:
    error = refused(command, **dict.fromkeys(missing, ""))
    assert error.code == 4
    assert message in error.message


def test_del_needs_no_namespace() -> None:
    assert parse("DEL", CNI_NETNS="").netns == ""


@pytest.mark.parametrize("command", ["STATUS", "GC", "VERSION"])
def test_these_need_no_container(command: str) -> None:
    parse(command, CNI_CONTAINERID="", CNI_IFNAME="", CNI_NETNS="")


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "ä", "../x", "a\n"])
def test_a_bad_container_id(name: str) -> None:
    error = refused("ADD", CNI_CONTAINERID=name)
    assert error.code == 4
    assert "CNI_CONTAINERID" in error.message


@pytest.mark.parametrize(
    "name", ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b", "a\tb", "é" * 8]
)
def test_a_bad_interface_name(name: str) -> None:
    error = refused("ADD", CNI_IFNAME=name)
    assert error.code == 4
    assert "CNI_IFNAME" in error.message


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a/b", "é", "-a"])
def test_a_bad_name_of_a_pod(name: str) -> None:
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"
    error = refused("ADD", CNI_ARGS=args)
    assert error.code == 4
    assert "K8S_POD_NAME" in error.message
    # What is there has to go, whatever it is called.
    assert str(parse("DEL", CNI_ARGS=args).pod.namespace) == "shop"


def test_the_longest_interface_name() -> None:
    assert parse("ADD", CNI_IFNAME="fifteen-bytes-x").ifname == "fifteen-bytes-x"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("NOVALUE", "'NOVALUE' is not of the form KEY=VALUE"),
        ("FOO=1;BAR=2", "unknown keys FOO, BAR; IgnoreUnknown=1"),
        ("IgnoreUnknown=0;FOO=1", "unknown keys FOO"),
        ("IP=10.0.0", "CNI_ARGS IP: '10.0.0' is not an IP address"),
        ("MAC=zz", "CNI_ARGS MAC"),
        ("MAC=01:00:5e:00:00:01", "not the address of one interface"),
    ],
)
def test_bad_args_are_refused_and_del_does_not_mind(args: str, message: str) -> None:
    error = refused("ADD", CNI_ARGS=args)
    assert error.code == 4
    assert message in error.message
    assert parse("DEL", CNI_ARGS=args).key == ("3f6940ab5ab4", "eth0")


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"\xff\xfe", 6),
        (b"null", 7),
        (b"[]", 7),
        (b'"x"', 7),
        (b'{"prevResult": ' * 100_000, 6),
        (b'{"unknown": ' + b"[" * 1_000_000, 6),
        (b'{"prevResult": {"interfaces": [{"a": ' + b"[" * 1_000_000, 6),
        (b'{"cniVersion": 1}', 7),
        (b'{"name": "x", "type": "podwire"}', 1),
        (b'{"cniVersion": "9.9.9", "name": "x", "type": "podwire"}', 1),
        (b'{"cniVersion": "0.2.0", "name": "x", "type": "podwire"}', 1),
        (b'{"cniVersion": "1.0.0", "type": "podwire"}', 7),
        (b'{"cniVersion": "1.0.0", "name": "a b", "type": "podwire"}', 7),
        (b'{"cniVersion": "1.0.0", "name": "x"}', 7),
        (b'{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "podwire"}]}', 7),
    ],
)
def test_bad_stdin(stdin: bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        protocol.parse_request({"CNI_COMMAND": "ADD", **ENV}, stdin)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"prevResult": []}, "$.prevResult"),
        ({"prevResult": {"ips": {}}}, "$.prevResult.ips"),
        ({"runtimeConfig": {"ips": "10.0.0.1"}}, "$.runtimeConfig.ips"),
        ({"dns": {"nameservers": [1]}}, "$.dns.nameservers[0]"),
        ({"name": 1}, "$.name"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(more: dict[str, Any], where: str) -> None:
    error = refused("ADD", conf(**more))
    assert error.code == 7
    assert where in error.details


def test_another_ipam_plugin_is_refused_and_del_does_not_mind() -> None:
    error = refused("ADD", conf(ipam={"type": "host-local", "subnet": "10.1.0.0/16"}))
    assert error.code == 2
    assert 'ipam.type: "host-local"' in error.message
    parse("DEL", conf(ipam={"type": "host-local"}))
    parse("ADD", conf(ipam={}))


def test_check_needs_the_result_of_the_add() -> None:
    error = refused("CHECK", {k: v for k, v in CONF.items() if k != "prevResult"})
    assert (error.code, "prevResult" in error.message) == (7, True)


def test_gc_without_a_list_is_not_taken_for_an_empty_one() -> None:
    body = {k: v for k, v in CONF.items() if not k.startswith("cni.dev")}
    error = refused("GC", body)
    assert (error.code, "cni.dev/valid-attachments" in error.message) == (7, True)
    assert parse("GC", conf(**{"cni.dev/valid-attachments": None})).command == "GC"


def test_requested_addresses_from_everywhere_once_each() -> None:
    request = parse(
        "ADD",
        conf(
            runtimeConfig={"ips": ["10.244.1.7/24", "fd00::7"]},
            args={"cni": {"ips": ["10.244.1.7"]}},
        ),
        CNI_ARGS="IP=fd00::7,10.244.1.8",
    )
    wanted = ("10.244.1.7", "fd00::7", "10.244.1.8")
    assert request.requested_ips == tuple(map(ip_address, wanted))


def test_a_requested_address_that_is_none() -> None:
    error = refused("ADD", conf(runtimeConfig={"ips": ["ten"]}))
    assert (error.code, error.message) == (7, "runtimeConfig.ips: 'ten' is not an IP address")


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "7"}', "1.1.0"),
        (b'{"cniVersion": []}', "1.1.0"),
        (b"", "1.1.0"),
        (b"[[", "1.1.0"),
    ],
)
def test_version_is_answered_in_the_version_asked(stdin: bytes, version: str) -> None:
    assert protocol.version_of(stdin) == version
    if stdin in (b"", b'{"cniVersion": "0.4.0"}'):
        request = protocol.parse_request({"CNI_COMMAND": "VERSION"}, stdin)
        reply = protocol.version_reply(request.version)
        assert json.loads(reply.stdout) == {
            "cniVersion": version,
            "supportedVersions": list(SUPPORTED_VERSIONS),
        }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(
    [
        "cniVersion",
        "name",
        "type",
        "dns",
        "ipam",
        "args",
        "prevResult",
        "runtimeConfig",
        "plugins",
        "cni.dev/valid-attachments",
    ]
)
strange_confs = st.dictionaries(keys, json_values).map(lambda more: json.dumps({**CONF, **more}))
env_values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(
    command=st.sampled_from([*Command, "", "x"]),
    env=st.dictionaries(
        st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]), env_values
    ),
    stdin=st.binary(max_size=50) | strange_confs.map(str.encode) | env_values.map(str.encode),
)
def test_whatever_comes_is_a_request_or_an_error_object(
    command: str, env: dict[str, str], stdin: bytes
) -> None:
    try:
        request = protocol.parse_request({**ENV, **env, "CNI_COMMAND": command}, stdin)
    except CniError as error:
        reply = protocol.error_reply(error, protocol.version_of(stdin))
        body = json.loads(reply.stdout)
        assert reply.status == 1
        assert body["cniVersion"] in SUPPORTED_VERSIONS
        assert isinstance(body["code"], int)
        assert body["msg"]
    else:
        assert request.version in SUPPORTED_VERSIONS


@given(text=st.text(max_size=60))
def test_any_args_parse_or_are_refused(text: str) -> None:
    try:
        parse("ADD", CNI_ARGS=text)
    except CniError as error:
        assert error.code == 4
