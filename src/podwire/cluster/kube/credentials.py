"""Who we are, request by request: tokens that rotate, exec plugins, passwords, impersonation.

A token file is read again when it changes (a kubelet swaps it well before the token ends). An
exec plugin is run when its last answer expires. A 401 discards what is cached, and the client
then tries once more.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import os
import ssl
import sys
from pathlib import Path

import msgspec

from podwire.cluster.kube.config import ClientConfig, ExecPlugin
from podwire.cluster.kube.tls import load_client_certificate
from podwire.decoding import from_json
from podwire.errors import ApiUnavailableError

_EXPIRY_MARGIN = dt.timedelta(seconds=10)


class _ExecStatus(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: dt.datetime | None = None


class _ExecCredential(msgspec.Struct):
    status: _ExecStatus


class Credentials:
    """Gives the identity headers of each request for one `ClientConfig`."""

    def __init__(self, config: ClientConfig, context: ssl.SSLContext | None) -> None:
        self._config = config
        self._context = context
        self._file_token: str | None = None
        self._file_version: tuple[int, int, int] | None = None
        self._exec_status: _ExecStatus | None = None
        self._exec_lock = asyncio.Lock()

    @property
    def refreshable(self) -> bool:
        """Whether trying again after `forget()` can give another answer."""
        return self._config.token_file is not None or self._config.exec_plugin is not None

    def forget(self) -> None:
        """The server refused what we sent; get it anew next time."""
        self._file_version = None
        self._exec_status = None

    async def headers(self) -> list[tuple[str, str]]:
        """Headers for the next request. Raises `ApiUnavailableError` when no token can be had."""
        headers = []
        authorization = await self._authorization()
        if authorization is not None:
            headers.append(("Authorization", authorization))
        if self._config.impersonate_user is not None:
            headers.append(("Impersonate-User", self._config.impersonate_user))
        headers += [("Impersonate-Group", group) for group in self._config.impersonate_groups]
        return headers

    async def _authorization(self) -> str | None:
        config = self._config
        if config.token is not None:
            return f"Bearer {config.token}"
        if config.token_file is not None:
            return f"Bearer {self._read_token_file(config.token_file)}"
        if config.exec_plugin is not None:
            async with self._exec_lock:
                token = await self._exec_token(config.exec_plugin)
            return f"Bearer {token}" if token else None
        if config.username is not None:
            pair = f"{config.username}:{config.password or ''}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        return None

    def _read_token_file(self, path: Path) -> str:
        try:
            # The kubelet swaps a symbolic link, so a new token is another inode.
            stat = path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._file_token is None or version != self._file_version:
                self._file_token = path.read_text().strip()
                self._file_version = version
        except OSError as error:
            raise ApiUnavailableError(
                f"cannot read the API token {path}: {error.strerror}"
            ) from None
        return self._file_token

    async def _exec_token(self, plugin: ExecPlugin) -> str | None:
        status = self._exec_status
        if status is None or _is_over(status.expiration_timestamp):
            status = await _run_plugin(plugin, self._config)
            if status.client_certificate_data and status.client_key_data and self._context:
                load_client_certificate(
                    self._context,
                    status.client_certificate_data.encode(),
                    status.client_key_data.encode(),
                )
            self._exec_status = status
        return status.token


def _is_over(end: dt.datetime | None) -> bool:
    if end is None:
        return False
    aware = end if end.tzinfo else end.replace(tzinfo=dt.UTC)
    return dt.datetime.now(dt.UTC) + _EXPIRY_MARGIN >= aware


async def _run_plugin(plugin: ExecPlugin, config: ClientConfig) -> _ExecStatus:
    environment = {
        **os.environ,
        **plugin.environment,
        "KUBERNETES_EXEC_INFO": _exec_info(plugin, config),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.arguments,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=sys.stderr,
        )
    except OSError as error:
        raise ApiUnavailableError(
            f"cannot run the credential plugin {plugin.command}: {error.strerror}",
            remedy=plugin.install_hint or None,
        ) from None
    output, _ = await process.communicate()
    if process.returncode:
        raise ApiUnavailableError(
            f"the credential plugin {plugin.command} ended with {process.returncode}"
        )
    try:
        status = from_json(output, _ExecCredential).status
    except msgspec.DecodeError as error:
        raise ApiUnavailableError(
            f"the credential plugin {plugin.command} printed no ExecCredential: {error}"
        ) from None
    if not status.token and not status.client_certificate_data:
        raise ApiUnavailableError(
            f"the credential plugin {plugin.command} gave no token or certificate"
        )
    return status


def _exec_info(plugin: ExecPlugin, config: ClientConfig) -> str:
    """What the plugin may know of us. Source: `ExecCredentialSpec`."""
    spec: dict[str, object] = {"interactive": False}
    if plugin.provide_cluster_info:
        cluster: dict[str, object] = {"server": config.server}
        if config.ca is not None:
            pem = config.ca if isinstance(config.ca, bytes) else config.ca.read_bytes()
            cluster["certificate-authority-data"] = base64.b64encode(pem).decode()
        if config.insecure_skip_tls_verify:
            cluster["insecure-skip-tls-verify"] = True
        if config.tls_server_name:
            cluster["tls-server-name"] = config.tls_server_name
        spec["cluster"] = cluster
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    return msgspec.json.encode(info).decode()
