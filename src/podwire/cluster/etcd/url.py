"""How a person names an etcd store: `etcd://USER@HOST:PORT,HOST:PORT/PREFIX?ca=FILE&…`.

What lives here: the settings and the text they are written in. Without I/O but for reading the
file that a password is in. A password that is part of the text is seen by everybody who lists
processes, so there are two other ways to give it.
"""

from __future__ import annotations

import os
import posixpath
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from podwire.errors import InputError

DEFAULT_PREFIX = "/coreos.com/network"
"""Where flanneld looks when it is not told (`--etcd-prefix`)."""
DEFAULT_PORT = 2379
PASSWORD_VARIABLE = "PODWIRE_ETCD_PASSWORD"  # noqa: S105  its name, not a password

_FIELD = "--store"
_FORM = "etcd://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…][/PREFIX][?ca=FILE&cert=FILE&key=FILE]"
_OPTIONS = ("ca", "cert", "key", "password-file")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """How to reach one etcd cluster, and where in it the network is.

    `endpoints` are `HOST:PORT`, IPv6 in brackets. With `tls` they are spoken to in https; `ca` None
    is then whom the system trusts. The files are read when a connection needs them, so that
    rotated ones are picked up. Durations are in seconds: a call waits `call_timeout_s` for each
    endpoint's answer, and a watch that is silent for `probe_s` is asked after.
    """

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    call_timeout_s: float = 5.0
    connect_timeout_s: float = 3.0
    probe_s: float = 10.0

    @property
    def title(self) -> str:
        """For people, without the password."""
        scheme = "etcds" if self.tls else "etcd"
        who = f"{quote(self.user)}@" if self.user else ""
        return f"{scheme}://{who}{','.join(self.endpoints)}{self.prefix}"

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http{'s' * self.tls}://{one}" for one in self.endpoints)

    def ssl_context(self) -> ssl.SSLContext:
        """Raises InputError for a file that can't be read, or that OpenSSL does not take."""
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context = ssl.create_default_context(cafile=str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise _wrong_file("ca", self.ca, error) from None
        if self.certificate is not None and self.key is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
            except (OSError, ssl.SSLError) as error:
                raise _wrong_file("cert", self.certificate, error) from None
        return context


def parse_url(text: str, environment: Mapping[str, str] = os.environ) -> EtcdConfig:
    """The settings in `text`. Raises InputError, which never has the password in it."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("etcd", "etcds"):
        raise _wrong(f"expected {_FORM}")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    identity, at, hosts = authority.rpartition("@")
    options = _options(query)
    user, colon, password = identity.partition(":")
    if at and not user:
        raise _wrong("there is no user before the @")
    files = {name: Path(options[name]) for name in ("ca", "cert", "key") if name in options}
    if ("cert" in files) != ("key" in files):
        missing = "key" if "cert" in files else "cert"
        raise _wrong(f"{missing} is missing: a client certificate and its key go together")
    return EtcdConfig(
        endpoints=_endpoints(hosts),
        prefix=_prefix(slash + unquote(path)),
        tls=scheme == "etcds" or bool(files),
        ca=files.get("ca"),
        certificate=files.get("cert"),
        key=files.get("key"),
        user=unquote(user) or None,
        password=_password(unquote(password) if colon else None, user, options, environment),
    )


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in _OPTIONS:
            raise _wrong(f"{name!r} is none of its options: {', '.join(_OPTIONS)}")
        if not equals or not value:
            raise _wrong(f"{name} has no value", remedy=f"write {name}=FILE")
        if name in options:
            raise _wrong(f"{name} is there twice")
        options[name] = unquote(value)
    return options


def _endpoints(hosts: str) -> tuple[str, ...]:
    found = []
    for part in hosts.split(","):
        host, port = part, str(DEFAULT_PORT)
        if not part.endswith("]") and ":" in part:
            host, _, port = part.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host.strip("[]") or (":" in host) != bracketed:
            raise _wrong(
                f"{part!r} is not HOST:PORT", remedy="e.g. etcd://10.0.0.1:2379,[fd00::2]:2379"
            )
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise _wrong(f"{port!r} is not a port")
        found.append(f"{host}:{port}")
    if len(set(found)) != len(found):
        raise _wrong("an endpoint is there twice")
    return tuple(found)


def _prefix(path: str) -> str:
    if not path.strip("/"):
        return DEFAULT_PREFIX
    # As Flannel joins the parts of a key; a second slash in front would be kept by POSIX.
    return posixpath.normpath("/" + path.strip("/"))


def _password(
    given: str | None, user: str, options: Mapping[str, str], environment: Mapping[str, str]
) -> str | None:
    name = options.get("password-file")
    if not user:
        if name is not None:
            raise _wrong("there is a password-file, and no user: etcd://USER@HOST…")
        return None
    if given is not None and name is not None:
        raise _wrong("there are a password and a password-file", remedy="leave out one of them")
    if given is not None:
        return given
    if name is not None:
        try:
            return Path(name).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise _wrong(f"can't read password-file {name}: {reason}") from None
    if PASSWORD_VARIABLE in environment:
        return environment[PASSWORD_VARIABLE]
    raise _wrong(
        f"there is no password for user {unquote(user)}",
        remedy=f"add password-file=FILE, or set {PASSWORD_VARIABLE}",
    )


def _wrong(message: str, *, remedy: str | None = None) -> InputError:
    return InputError(message, field=_FIELD, remedy=remedy)


def _wrong_file(name: str, path: Path | None, error: OSError) -> InputError:
    reason = str(error) if isinstance(error, ssl.SSLError) else error.strerror
    return InputError(f"{name}={path} can't be used: {reason}", field=_FIELD)


def _refuse_password() -> str:
    """Stands in for OpenSSL's own prompt, which would read from the terminal."""
    raise InputError("the key is encrypted, and there is no way to ask", field=f"{_FIELD} key")
