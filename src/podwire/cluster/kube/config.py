"""Where an API server is and how to prove who we are: `ClientConfig` and where it comes from.

What lives here: the settings themselves, in-cluster discovery, and the order of sources. What
does not: the kubeconfig format (`kubeconfig.py`), turning settings into TLS (`tls.py`) and
headers (`credentials.py`).

Certificates and keys are kept as they were given, PEM bytes or the path of a file: a path is
read when a connection needs it, so that rotated files are picked up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from podwire.errors import InputError

Pem: TypeAlias = bytes | Path

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a kubelet mounts a pod's own credentials."""


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints credentials. Source: client.authentication.k8s.io/v1."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    api_version: str = "client.authentication.k8s.io/v1"
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How to reach one API server.

    `server` is an `http://` or `https://` URL (a path prefix is kept) or `unix:///path/to.sock`,
    which is Podwire's own addition. At most one of `token`, `token_file`, `exec_plugin` and
    `username` proves the identity, with or without a client certificate. `namespace` is the
    default for namespaced objects.
    """

    server: str
    namespace: str = "default"
    ca: Pem | None = None
    insecure_skip_tls_verify: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    client_certificate: Pem | None = field(default=None, repr=False)
    client_key: Pem | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    exec_plugin: ExecPlugin | None = None
    impersonate_user: str | None = None
    impersonate_groups: tuple[str, ...] = ()

    @classmethod
    def from_kubeconfig(cls, path: str | Path, context: str | None = None) -> ClientConfig:
        """Read one kubeconfig; `context` overrides its `current-context`.

        Raises `InputError` naming the field and the file, `UnsupportedError` for a way of
        authenticating that Podwire does not have.
        """
        from podwire.cluster.kube.kubeconfig import read

        return read([Path(path)], context)

    @classmethod
    def in_cluster(cls, directory: Path = SERVICE_ACCOUNT_DIR) -> ClientConfig:
        """The credentials that a pod's service account gives it.

        The token is read from its file again whenever the kubelet rotates it. Raises
        `InputError` outside a pod.
        """
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise InputError(
                "not set, so this is no pod of a cluster", field="KUBERNETES_SERVICE_HOST"
            )
        token_file = directory / "token"
        if not token_file.is_file():
            raise InputError(
                "does not exist",
                field=str(token_file),
                remedy="let the pod mount its token: automountServiceAccountToken: true",
            )
        ca_file, namespace_file = directory / "ca.crt", directory / "namespace"
        return cls(
            server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            namespace=namespace_file.read_text().strip() if namespace_file.is_file() else "default",
            ca=ca_file if ca_file.is_file() else None,
            token_file=token_file,
        )

    @classmethod
    def load(cls, path: str | Path | None = None, context: str | None = None) -> ClientConfig:
        """The first that exists of: `path`, the files of `KUBECONFIG`, in-cluster credentials,
        `~/.kube/config`.

        Raises `InputError` when there is none, or the one there is is wrong.
        """
        from podwire.cluster.kube.kubeconfig import read

        if path is not None:
            return cls.from_kubeconfig(path, context)
        listed = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(":") if part]
        if listed:
            existing = [path for path in listed if path.exists()]
            if not existing:
                names = ", ".join(map(str, listed))
                raise InputError(f"no such file: {names}", field="KUBECONFIG")
            return read(existing, context)
        if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
            return cls.in_cluster()
        home = Path("~/.kube/config").expanduser()
        if home.exists():
            return cls.from_kubeconfig(home, context)
        raise InputError(
            "there is none, nor a lab, nor a service account",
            field="kubeconfig",
            remedy="start a lab with `podwire lab up`, or name a cluster with --kubeconfig",
        )
