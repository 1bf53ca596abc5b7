"""The vocabulary of the Container Network Interface (CNI): versions, commands, codes, structures.

Values only. Names and numbers are those of the CNI specification (github.com/containernetworking/
cni, SPEC.md at tags spec-v0.3.1, spec-v0.4.0, spec-v1.0.0 and spec-v1.1.0); the codes from 100 are
ours, as the specification allows.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from podwire.errors import PodwireError
from podwire.ipam.record import Key, PodIdentity
from podwire.model.state import IPAddress

#: Versions of the specification that are spoken, oldest first.
SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]

#: `type` in a network configuration, which is also the name of the executable.
PLUGIN_TYPE = "podwire"


def at_least(version: str, other: str) -> bool:
    """Whether supported `version` is `other` or a later one."""
    return SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(other)


class Command(enum.StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    VERSION = "VERSION"
    STATUS = "STATUS"
    GC = "GC"

    @property
    def since(self) -> str:
        """The version of the specification that brought the command."""
        return {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}.get(self, "0.3.1")


class Code(enum.IntEnum):
    """Error codes: 1 to 99 are the specification's, those from 100 are Podwire's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_NETWORK_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    """STATUS only: no pod can be wired yet. A full subnet is not that: it must not make a node
    NotReady whose pods are well."""

    ADDRESSES_EXHAUSTED = 100
    """Every address of the node's subnet is held."""
    ADDRESS_REFUSED = 101
    """The address asked for is outside of the subnet, reserved, or held by another pod."""
    INTERFACE_EXISTS = 102
    """The pod has an interface (or a default route) of that name that Podwire did not make."""
    KERNEL_REFUSED = 103
    STORE_FAILED = 104
    """The database could not be read or written."""
    CHECK_FAILED = 105
    """CHECK found differences; all are in `details`."""
    INTERNAL = 199
    """A bug."""


class CniError(PodwireError):
    """A request that fails: what the runtime gets as the error object."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class _Camel(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class Dns(_Camel, frozen=True):
    """`dns` of a configuration and of a result."""

    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class PrevResult(_Camel, frozen=True):
    """The result so far of a chain. Its entries are passed on as they came, so they stay dicts."""

    cni_version: str = ""
    interfaces: list[dict[str, Any]] | None = None
    ips: list[dict[str, Any]] | None = None
    routes: list[dict[str, Any]] | None = None
    dns: Dns | None = None


class RuntimeConfig(_Camel, frozen=True):
    """The values of capabilities (CONVENTIONS.md): those that the conflist declares."""

    ips: list[str] | None = None
    mac: str = ""


class CniArgs(_Camel, frozen=True):
    """`args.cni`: labels and the older way of asking for addresses."""

    ips: list[str] | None = None


class Args(_Camel, frozen=True):
    cni: CniArgs | None = None


class Ipam(_Camel, frozen=True):
    """`ipam`: only looked at to refuse another plugin's."""

    type: str = ""


class ValidAttachment(msgspec.Struct, frozen=True):
    """An entry of `cni.dev/valid-attachments`."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str

    @property
    def key(self) -> Key:
        return Key(self.container_id, self.ifname)


class NetConf(_Camel, frozen=True):
    """The network configuration on stdin. Keys that are not here are another program's business."""

    cni_version: str = ""
    name: str = ""
    type: str = ""
    dns: Dns | None = None
    ipam: Ipam | None = None
    args: Args | None = None
    prev_result: PrevResult | None = None
    runtime_config: RuntimeConfig | None = None
    plugins: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    #: libcni writes null, not [], where nothing is valid any more; only an absent key is a mistake.
    valid_attachments: list[ValidAttachment] | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="cni.dev/valid-attachments"
    )


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been found good: every field is as the specification wants it."""

    command: Command
    version: str
    conf: NetConf
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    pod: PodIdentity = PodIdentity()
    requested_ips: tuple[IPAddress, ...] = ()
    requested_mac: bytes | None = None

    @property
    def key(self) -> Key:
        return Key(self.container_id, self.ifname)


class Reply(msgspec.Struct, frozen=True):
    """What the executable does: its exit status, and the bytes that it prints."""

    status: int
    stdout: bytes
