"""What goes wrong with etcd, as Podwire's errors: each with the member, the reason and a remedy.

Both what etcd answers (its texts are part of its API: clients in other languages have nothing
else to tell errors of one code by) and what happens to a connection. No I/O.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence

import aiohttp

from podwire.cluster.etcd.url import EtcdConfig
from podwire.errors import (
    StoreCompactedError,
    StoreError,
    StoreForbiddenError,
    StoreUnavailableError,
)

#: Status codes of gRPC (google/rpc/code.proto).
NOT_FOUND = 5
_UNAVAILABLE_CODES = (4, 14)
#: What etcd says where a token has expired, is of before a restart, or was needed and not there.
_STALE = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
)
#: What the JSON gateway says where it can't reach the very server that it is a part of.
_GATEWAY_LOST = ("connection closed", "connection error:")
#: And where a certificate has a name that might be taken for a user's.
_NAMED_CERTIFICATE = "CommonName of client"
NO_USERS = "authentication is not enabled"


class StaleTokenError(StoreForbiddenError):
    """A token is not taken any more; with another one it may be."""


def failure(config: EtcdConfig, url: str, message: str, code: int) -> StoreError:
    """The error for what the member at `url` answered."""
    what = f"etcd at {url}: {message.removeprefix('etcdserver: ')}"
    if "has been compacted" in message:
        return StoreCompactedError(what, code=code)
    if "permission denied" in message:
        who = f"user {config.user}" if config.user else "that user"
        return StoreForbiddenError(
            what,
            code=code,
            remedy=f"grant a role of {who} to read and write all keys below {config.prefix}/",
        )
    if "authentication failed" in message:
        return StoreForbiddenError(what, code=code, remedy="check the user and the password")
    if message in _STALE and config.user is None:
        return StoreForbiddenError(
            f"etcd at {url} wants to know a user",
            code=code,
            remedy="name one: --store etcd://USER@HOST…?password-file=FILE"
            " (a certificate's name is not enough)",
        )
    if message in _STALE:
        return StaleTokenError(what, code=code)
    if code in _UNAVAILABLE_CODES:
        return unavailable(config, url, message, sent="no leader" not in message)
    remedy = None
    if "database space exceeded" in message:
        remedy = "compact and defragment etcd, then disarm its alarm (see etcdctl(1))"
    return StoreError(what, code=code, remedy=remedy)


def no_gateway(url: str, status: int, body: bytes) -> StoreError:
    """The error for an answer that is none of the gateway's own."""
    text = " ".join(body.decode(errors="replace").split())[:200]
    if text.startswith(_NAMED_CERTIFICATE):
        return StoreForbiddenError(
            f"etcd at {url} has users, and takes no client certificate with a common name (CN)",
            remedy="make one without a CN, e.g. of subject /O=podwire, or let etcd listen without"
            " --client-cert-auth: the user's password is asked for in any case",
        )
    return StoreError(
        f"{url} answered HTTP {status}: {text}",
        remedy="is this a client URL of etcd 3.4 or newer, with its JSON gateway enabled?",
    )


def unavailable(
    config: EtcdConfig, url: str, reason: str, *, sent: bool = True, remedy: str | None = None
) -> StoreUnavailableError:
    """The error for a member that did not do what it was asked, or not for certain (`sent`)."""
    reason = reason.removeprefix("etcdserver: ")
    if remedy is None and config.tls and reason.startswith(_GATEWAY_LOST):
        remedy = (
            "if that is always so: its own certificate has to be good for clients too"
            " (extendedKeyUsage clientAuth), or its JSON gateway can't use it"
        )
    return StoreUnavailableError(f"etcd at {url}: {reason}", remedy=remedy, may_have_happened=sent)


def all_of(failures: Sequence[StoreUnavailableError]) -> StoreUnavailableError:
    """One error for every endpoint's."""
    if len(failures) == 1:
        return failures[0]
    return StoreUnavailableError(
        "; ".join(error.message for error in failures),
        remedy=next((error.remedy for error in failures if error.remedy), None),
        may_have_happened=any(error.may_have_happened for error in failures),
    )


@contextlib.contextmanager
def failing(config: EtcdConfig, url: str, *, sent: bool = True) -> Iterator[None]:
    """Turn a failure to reach a member, or to stay connected, into our error."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise unavailable(
            config,
            url,
            f"its certificate can't be trusted: {error.certificate_error}",
            sent=False,
            remedy="check ca=FILE of --store, and that the certificate is for that address",
        ) from error
    except aiohttp.ClientConnectorError as error:
        cause, remedy = _connecting(config, error.os_error)
        reason = f"can't be reached: {cause}"
        raise unavailable(config, url, reason, sent=False, remedy=remedy) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise unavailable(config, url, "can't be reached in time", sent=False) from error
    except TimeoutError as error:
        raise unavailable(config, url, "no answer in time", sent=sent) from error
    except (aiohttp.ClientError, OSError) as error:
        reason = f"the connection was lost: {error or type(error).__name__}"
        remedy_or_none = _remedy_of_loss(config, error)
        raise unavailable(config, url, reason, sent=sent, remedy=remedy_or_none) from error


def _remedy_of_loss(config: EtcdConfig, error: Exception) -> str | None:
    if not config.tls:
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "if it serves https: etcds://, or name its CA with ?ca=FILE"
        return None
    if not isinstance(error, (ssl.SSLError, aiohttp.ClientOSError)):
        return None
    # With TLS 1.3, a server refuses the client's certificate after the handshake.
    if config.certificate is None:
        return "if it wants a client certificate, name one: ?cert=FILE&key=FILE"
    return "is the client certificate of a CA that etcd trusts, and still valid?"


def _connecting(config: EtcdConfig, error: OSError) -> tuple[str, str]:
    """What went wrong while connecting, and what to do."""
    no_tls = "it does not speak TLS", "name it without ca, cert and key, as etcd://"
    if isinstance(error, ssl.SSLError):
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return no_tls
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"TLS failed: {reason}", "check ca, cert and key of --store"
    if config.tls and isinstance(error, ConnectionResetError):
        # An etcd without TLS hangs up on who greets it with that.
        return no_tls
    return error.strerror or str(error), "check that it runs, and the address in --store"
