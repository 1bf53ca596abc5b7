"""The kubeconfig format: files in, one `ClientConfig` out.

What lives here: the format's fields as kubectl knows them, their validation, and merging of
several files (the first to name a cluster, user or context wins, as does the first
`current-context`). Paths inside a file are relative to that file.

Source: k8s.io/client-go/tools/clientcmd/api/v1. Fields that Podwire has no use for are ignored,
except those that decide who we are: an identity that we cannot take on is refused, never
replaced by a lesser one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from podwire.cluster.kube.config import ClientConfig, ExecPlugin, Pem
from podwire.decoding import check_yaml
from podwire.errors import InputError, PodwireError, UnsupportedError

_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class _Base(msgspec.Struct, frozen=True, rename="kebab"):
    """Kubeconfig fields are hyphenated, except inside `exec`."""


class _Cluster(_Base, frozen=True):
    server: str = ""
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _ExecEnv(msgspec.Struct, frozen=True):
    name: str
    value: str


class _Exec(msgspec.Struct, frozen=True, rename="camel"):
    command: str
    api_version: str = _EXEC_VERSIONS[0]
    args: list[str] | None = None
    env: list[_ExecEnv] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class _User(_Base, frozen=True):
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    username: str | None = None
    password: str | None = None
    exec: _Exec | None = None
    auth_provider: dict[str, Any] | None = None
    as_user: str | None = msgspec.field(default=None, name="as")
    as_uid: str | None = None
    as_groups: list[str] | None = None
    as_user_extra: dict[str, Any] | None = None


class _Context(_Base, frozen=True):
    cluster: str = ""
    user: str = ""
    namespace: str | None = None


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _File(_Base, frozen=True):
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None
    current_context: str | None = None


Named = TypeVar("Named", _NamedCluster, _NamedUser, _NamedContext)


class _Entry:
    """Where one cluster, user or context stands, to name it in errors and resolve its paths."""

    def __init__(self, path: Path, field: str) -> None:
        self.path = path
        self.field = field

    def wrong(self, name: str, message: str, *, remedy: str | None = None) -> InputError:
        return InputError(
            f"{message} (in {self.path})", field=f"{self.field}.{name}", remedy=remedy
        )

    def file(self, name: str, value: str) -> Path:
        """The path in field `name`, which has to exist."""
        path = self.path.parent / Path(value).expanduser()
        if not path.is_file():
            raise self.wrong(name, f"no such file: {path}")
        return path

    def pem(self, name: str, value: str | None, data: str | None) -> Pem | None:
        """A PEM given as a file in field `name` or inline in `name-data`, which wins."""
        if data:
            return self._inline_pem(f"{name}-data", data)
        return self.file(name, value) if value else None

    def _inline_pem(self, name: str, data: str) -> bytes:
        try:
            pem = base64.b64decode(data, validate=True)
        except binascii.Error:
            raise self.wrong(name, "expected base64 of a PEM file") from None
        if b"-----BEGIN" not in pem:
            raise self.wrong(name, "expected base64 of a PEM file; decoded, it is none")
        return pem


def read(paths: Sequence[Path], context: str | None = None) -> ClientConfig:
    """Merge the kubeconfigs at `paths` and resolve `context` (the current one when None).

    Raises `InputError` naming the field and the file; `UnsupportedError` for an identity that
    Podwire cannot take on.
    """
    files = [(path, _parse(path)) for path in paths]
    names = ", ".join(str(path) for path in paths)
    wanted = context or next(
        (file.current_context for _, file in files if file.current_context), None
    )
    if wanted is None:
        raise InputError(
            f"not set (in {names})",
            field="current-context",
            remedy="choose one with `kubectl config use-context NAME`",
        )
    where = "context" if context else "current-context"
    chosen, entry = _find(
        [(path, file.contexts or []) for path, file in files], "contexts", wanted, where, names
    )
    cluster_name, user_name = chosen.context.cluster, chosen.context.user
    cluster, cluster_entry = _find(
        [(path, file.clusters or []) for path, file in files],
        "clusters",
        cluster_name,
        f"{entry.field}.context.cluster",
        names,
    )
    settings = _cluster_settings(cluster.cluster, cluster_entry)
    if user_name:
        user, user_entry = _find(
            [(path, file.users or []) for path, file in files],
            "users",
            user_name,
            f"{entry.field}.context.user",
            names,
        )
        settings |= _user_settings(user.user or _User(), user_entry)
    return ClientConfig(namespace=chosen.context.namespace or "default", **settings)


def _parse(path: Path) -> _File:
    import yaml

    try:
        text = path.read_bytes()
    except OSError as error:
        raise PodwireError(f"cannot read kubeconfig {path}: {error.strerror}") from None
    try:
        check_yaml(text, yaml.CSafeLoader)
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"not valid YAML: {problem}", field=str(path)) from None
    try:
        return msgspec.convert({} if document is None else document, _File)
    except msgspec.ValidationError as error:
        message, _, field = str(error).partition(" - at `$")
        field = field.rstrip("`").lstrip(".") or "kubeconfig"
        raise InputError(f"{_lower_first(message)} (in {path})", field=field) from None


def _find(
    lists: Sequence[tuple[Path, Sequence[Named]]], kind: str, name: str, wanted_by: str, names: str
) -> tuple[Named, _Entry]:
    for path, entries in lists:
        for index, entry in enumerate(entries):
            if entry.name == name:
                return entry, _Entry(path, f"{kind}[{index}]")
    known = sorted({entry.name for _, entries in lists for entry in entries})
    raise InputError(
        f'"{name}" is not among {kind} (in {names})',
        field=wanted_by,
        remedy=f"there are: {', '.join(known)}" if known else None,
    )


def _cluster_settings(cluster: _Cluster, entry: _Entry) -> dict[str, Any]:
    entry.field += ".cluster"
    _check_server(cluster.server, entry)
    ca = entry.pem(
        "certificate-authority", cluster.certificate_authority, cluster.certificate_authority_data
    )
    if ca is not None and cluster.insecure_skip_tls_verify:
        raise entry.wrong("insecure-skip-tls-verify", "excludes certificate-authority")
    if cluster.proxy_url and urlsplit(cluster.proxy_url).scheme not in ("http", "https"):
        raise entry.wrong("proxy-url", "expected an http:// or https:// URL")
    return {
        "server": cluster.server.rstrip("/"),
        "ca": ca,
        "insecure_skip_tls_verify": cluster.insecure_skip_tls_verify,
        "tls_server_name": cluster.tls_server_name or None,
        "proxy_url": cluster.proxy_url or None,
    }


def _check_server(server: str, entry: _Entry) -> None:
    try:
        url = urlsplit(server)
        usable = url.path.startswith("/") if url.scheme == "unix" else bool(url.hostname)
        usable = usable and url.scheme in ("http", "https", "unix")
        _ = url.port
    except ValueError:
        usable = False
    if not usable:
        raise entry.wrong(
            "server", f"expected https://HOST:PORT, http://… or unix:///PATH, got {server!r}"
        )


def _user_settings(user: _User, entry: _Entry) -> dict[str, Any]:
    entry.field += ".user"
    for field, value in (
        ("auth-provider", user.auth_provider),
        ("as-uid", user.as_uid),
        ("as-user-extra", user.as_user_extra),
    ):
        if value:
            raise UnsupportedError(
                f"{entry.field}.{field}: not supported (in {entry.path})",
                remedy="use a token, a client certificate or an exec plugin",
            )
    certificate = entry.pem(
        "client-certificate", user.client_certificate, user.client_certificate_data
    )
    key = entry.pem("client-key", user.client_key, user.client_key_data)
    if (certificate is None) != (key is None):
        missing = "client-key" if key is None else "client-certificate"
        raise entry.wrong(missing, "missing: a client certificate and its key go together")
    # kubectl prefers the file over an inline token, since only the file can be rotated.
    token_file = entry.file("tokenFile", user.token_file) if user.token_file else None
    return {
        "client_certificate": certificate,
        "client_key": key,
        "token": (user.token or None) if token_file is None else None,
        "token_file": token_file,
        "username": user.username or None,
        "password": user.password or None,
        "exec_plugin": _exec_plugin(user.exec, entry) if user.exec else None,
        "impersonate_user": user.as_user or None,
        "impersonate_groups": tuple(user.as_groups or ()),
    }


def _exec_plugin(plugin: _Exec, entry: _Entry) -> ExecPlugin:
    if plugin.api_version not in _EXEC_VERSIONS:
        raise entry.wrong("exec.apiVersion", f"expected one of {', '.join(_EXEC_VERSIONS)}")
    if plugin.interactive_mode == "Always":
        raise UnsupportedError(
            f"{entry.field}.exec: a plugin that asks questions is not supported (in {entry.path})"
        )
    command = plugin.command
    if "/" in command:
        # Like a shell: only a name without a slash is looked up in PATH.
        command = str(entry.path.parent / command)
    return ExecPlugin(
        command=command,
        arguments=tuple(plugin.args or ()),
        environment={variable.name: variable.value for variable in plugin.env or ()},
        api_version=plugin.api_version,
        install_hint=plugin.install_hint,
        provide_cluster_info=plugin.provide_cluster_info,
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
