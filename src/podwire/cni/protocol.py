"""Environment and stdin of a CNI call to a `Request`, and answers to bytes. No I/O.

Everything that a runtime sends is checked here, in the order of the reference implementation
(pkg/skel): the environment, then the version, then the configuration. What is wrong becomes a
`CniError` with the specification's code and the name of the variable or field.

DEL is lenient on purpose: a container whose ADD was refused gets a DEL with the same arguments, and
refusing that as well would leave the runtime retrying it for ever. It needs to know whose
attachment to release, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec

from podwire.cni.types import (
    NEWEST_VERSION,
    PLUGIN_TYPE,
    SUPPORTED_VERSIONS,
    CniError,
    Code,
    Command,
    NetConf,
    Reply,
    Request,
    at_least,
)
from podwire.decoding import from_json
from podwire.ipam.record import PodIdentity
from podwire.model.state import IPAddress, parse_interface_mac

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_IFNAME_FORBIDDEN = re.compile(r"[/:\s\x00-\x1f\x7f]")
_IFNAME_MAX = 15  # IFNAMSIZ less the terminating zero (linux/if.h)

_REQUIRED = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
}

#: Keys of CNI_ARGS that are read or known to be harmless; others need IgnoreUnknown.
_KNOWN_ARGS = frozenset(
    {
        "IgnoreUnknown",
        "IP",
        "MAC",
        "K8S_POD_NAME",
        "K8S_POD_NAMESPACE",
        "K8S_POD_UID",
        "K8S_POD_INFRA_CONTAINER_ID",
    }
)


def parse_request(env: Mapping[str, str], stdin: bytes) -> Request:
    """The request that a runtime makes. Raises CniError for anything but a good one."""
    command = _command(env)
    if command is Command.VERSION:
        conf = _conf(stdin) if stdin.strip() else NetConf()
        version = conf.cni_version if conf.cni_version in SUPPORTED_VERSIONS else NEWEST_VERSION
        return Request(command=command, version=version, conf=conf)
    missing = [name for name in _REQUIRED.get(command, ()) if not env.get(name)]
    if missing:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"required environment variables are missing: {', '.join(missing)}",
        )
    conf = _conf(stdin)
    _check_version(command, conf.cni_version)
    _check_conf(command, conf)
    if command in (Command.STATUS, Command.GC):
        return Request(command=command, version=conf.cni_version, conf=conf)
    container_id, ifname = env["CNI_CONTAINERID"], env["CNI_IFNAME"]
    _check_container_id(container_id)
    _check_ifname(ifname)
    lenient = command is Command.DEL
    args = _args(env.get("CNI_ARGS", ""), lenient=lenient)
    return Request(
        command=command,
        version=conf.cni_version,
        conf=conf,
        container_id=container_id,
        ifname=ifname,
        netns=env.get("CNI_NETNS", ""),
        pod=PodIdentity(
            namespace=_identifier(args, "K8S_POD_NAMESPACE", lenient=lenient),
            name=_identifier(args, "K8S_POD_NAME", lenient=lenient),
            uid=_identifier(args, "K8S_POD_UID", lenient=lenient),
        ),
        requested_ips=() if lenient else _requested_ips(conf, args),
        requested_mac=None if lenient else _requested_mac(conf, args),
    )


def version_of(stdin: bytes) -> str:
    """The `cniVersion` to answer a bad request in: the one that it names, else the newest."""
    try:
        version = from_json(stdin, dict[str, Any]).get("cniVersion")
    except msgspec.DecodeError:
        return NEWEST_VERSION
    return version if version in SUPPORTED_VERSIONS else NEWEST_VERSION


def error_reply(error: CniError, version: str) -> Reply:
    """The error object of the specification, and exit status 1."""
    body: dict[str, object] = {
        "cniVersion": version,
        "code": int(error.code),
        "msg": error.message,
    }
    if error.details:
        body["details"] = error.details
    return Reply(1, msgspec.json.encode(body))


def version_reply(version: str) -> Reply:
    """The answer to VERSION."""
    body = {"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS}
    return Reply(0, msgspec.json.encode(body))


def _command(env: Mapping[str, str]) -> Command:
    text = env.get("CNI_COMMAND", "")
    if not text:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            "required environment variables are missing: CNI_COMMAND",
            "this is a CNI plugin: container runtimes call it, people do not",
        )
    try:
        return Command(text)
    except ValueError:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND: unknown command {text!r}; known are {', '.join(Command)}",
        ) from None


def _conf(stdin: bytes) -> NetConf:
    try:
        return from_json(stdin, NetConf)
    except msgspec.ValidationError as error:
        raise CniError(
            Code.INVALID_NETWORK_CONFIG, "invalid network configuration", str(error)
        ) from error
    except msgspec.DecodeError as error:
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration on stdin is not JSON", str(error)
        ) from error


def _check_version(command: Command, version: str) -> None:
    supported = ", ".join(SUPPORTED_VERSIONS)
    if version not in SUPPORTED_VERSIONS:
        named = f"cniVersion {version!r} is not supported" if version else "cniVersion is missing"
        raise CniError(Code.INCOMPATIBLE_VERSION, f"{named}; supported are {supported}")
    if not at_least(version, command.since):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version} has no {command}; it came with {command.since}",
        )


def _check_conf(command: Command, conf: NetConf) -> None:
    if conf.plugins is not msgspec.UNSET:
        raise _invalid(
            "plugins: this is a network configuration list; a plugin is given one entry of it"
        )
    if not conf.name:
        raise _invalid("name: is missing; expected the name of the network")
    if not _IDENTIFIER.fullmatch(conf.name):
        raise _invalid(
            f"name: {conf.name!r} is not a network name; expected a letter or digit, then letters,"
            " digits, '_', '.' or '-'"
        )
    if not conf.type:
        raise _invalid(f'type: is missing; expected "{PLUGIN_TYPE}"')
    if command is Command.CHECK and conf.prev_result is None:
        raise _invalid("prevResult: is missing; CHECK needs the result of the ADD")
    if command is Command.GC and conf.valid_attachments is msgspec.UNSET:
        raise _invalid("cni.dev/valid-attachments: is missing; GC needs the attachments to keep")
    if command is Command.ADD and conf.ipam is not None and conf.ipam.type not in ("", PLUGIN_TYPE):
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f'ipam.type: "{conf.ipam.type}" is not supported; Podwire hands out the addresses of'
            " the node's subnet itself, remove `ipam`",
        )


def _invalid(message: str) -> CniError:
    return CniError(Code.INVALID_NETWORK_CONFIG, message)


def _check_container_id(container_id: str) -> None:
    if not _IDENTIFIER.fullmatch(container_id):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID: {container_id!r} is not a container ID; expected a letter or digit,"
            " then letters, digits, '_', '.' or '-'",
        )


def _check_ifname(ifname: str) -> None:
    if len(ifname.encode(errors="surrogateescape")) > _IFNAME_MAX:
        problem = f"is longer than {_IFNAME_MAX} bytes"
    elif ifname in (".", ".."):
        problem = "is not allowed"
    elif _IFNAME_FORBIDDEN.search(ifname):
        problem = "contains '/', ':', white space or a control character"
    else:
        return
    raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_IFNAME: {ifname!r} {problem}")


def _args(text: str, *, lenient: bool) -> dict[str, str]:
    """CNI_ARGS, `KEY=VALUE` pairs with semicolons between them."""
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals and not lenient:
            raise CniError(
                Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {pair!r} is not of the form KEY=VALUE"
            )
        args[key] = value
    if lenient:
        return args
    ignore_unknown = args.get("IgnoreUnknown", "").lower() in ("1", "true")
    unknown = [key for key in args if key not in _KNOWN_ARGS]
    if unknown and not ignore_unknown:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS: unknown keys {', '.join(unknown)}; IgnoreUnknown=1 lets them pass",
        )
    return args


def _identifier(args: Mapping[str, str], key: str, *, lenient: bool) -> str:
    """A name of the pod, which is shown wherever the pod is: one line, and no control character."""
    value = args.get(key, "")
    if not value or _IDENTIFIER.fullmatch(value):
        return value
    if lenient:
        return ""
    raise CniError(
        Code.INVALID_ENVIRONMENT,
        f"CNI_ARGS: {key}: {value!r} is not a name; expected a letter or digit, then letters,"
        " digits, '_', '.' or '-'",
    )


def _requested_ips(conf: NetConf, args: Mapping[str, str]) -> tuple[IPAddress, ...]:
    """Addresses asked for in any of the three ways (CONVENTIONS.md, "ips"), each once."""
    wanted: list[tuple[str, str, Code]] = []
    if conf.runtime_config is not None and conf.runtime_config.ips:
        code = Code.INVALID_NETWORK_CONFIG
        wanted += [("runtimeConfig.ips", ip, code) for ip in conf.runtime_config.ips]
    if conf.args is not None and conf.args.cni is not None and conf.args.cni.ips:
        wanted += [("args.cni.ips", ip, Code.INVALID_NETWORK_CONFIG) for ip in conf.args.cni.ips]
    if args.get("IP"):
        wanted += [("CNI_ARGS IP", ip, Code.INVALID_ENVIRONMENT) for ip in args["IP"].split(",")]
    found: dict[IPAddress, None] = {}
    for where, text, code in wanted:
        try:
            # Runtimes send them with the subnet's prefix length or without.
            ip = ip_interface(text).ip if "/" in text else ip_address(text)
        except ValueError:
            raise CniError(code, f"{where}: {text!r} is not an IP address") from None
        found[ip] = None
    return tuple(found)


def _requested_mac(conf: NetConf, args: Mapping[str, str]) -> bytes | None:
    """The hardware address asked for (CONVENTIONS.md, "mac")."""
    where, text, code = "CNI_ARGS MAC", args.get("MAC", ""), Code.INVALID_ENVIRONMENT
    if conf.runtime_config is not None and conf.runtime_config.mac:
        where, text = "runtimeConfig.mac", conf.runtime_config.mac
        code = Code.INVALID_NETWORK_CONFIG
    if not text:
        return None
    try:
        return parse_interface_mac(text)
    except ValueError as error:
        raise CniError(code, f"{where}: {error}") from None
