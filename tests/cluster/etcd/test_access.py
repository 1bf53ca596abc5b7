"""Who may: TLS with client certificates, users and passwords, and what is said where it fails."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from podwire.cluster.etcd.client import EtcdClient
from podwire.cluster.etcd.messages import put
from podwire.cluster.etcd.url import EtcdConfig
from podwire.errors import InputError, StoreForbiddenError, StoreUnavailableError

from .authority import Authority
from .server import EtcdServer, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


def secured(directory: Path, authority: Authority, name: str, usage: str) -> EtcdServer:
    certificate, key = authority.issue(name, usage)
    options = ("--cert-file", str(certificate), "--key-file", str(key))
    return EtcdServer(
        directory,
        scheme="https",
        options=(*options, "--client-cert-auth", "--trusted-ca-file", str(authority.ca)),
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[EtcdServer]:
    directory = tmp_path_factory.mktemp("etcd")
    with secured(directory, authority, "server", "serverAuth,clientAuth") as server:
        yield server


@pytest.fixture
def tls_config(tls: EtcdServer, authority: Authority) -> EtcdConfig:
    certificate, key = authority.issue("client", "clientAuth")
    return replace(tls.config, tls=True, ca=authority.ca, certificate=certificate, key=key)


async def failing(config: EtcdConfig) -> StoreUnavailableError:
    """What a read of it raises."""
    async with EtcdClient(config) as client:
        with pytest.raises(StoreUnavailableError) as caught:
            await client.get(b"/x")
    return caught.value


async def test_a_client_certificate_is_taken(tls_config: EtcdConfig) -> None:
    async with EtcdClient(tls_config) as client:
        await client.txn([], [put(b"/x", b"1")])
        listing = await client.range(b"/x", b"/y")
        batches = client.watch(b"/x", b"/y", after=listing, revision=listing.revision - 1)
        assert (await anext(batches)).changes
        await batches.aclose()


async def test_without_a_client_certificate(tls_config: EtcdConfig) -> None:
    error = await failing(replace(tls_config, certificate=None, key=None))
    assert "?cert=FILE&key=FILE" in (error.remedy or "")


async def test_a_server_of_another_authority(tls_config: EtcdConfig, tmp_path: Path) -> None:
    error = await failing(replace(tls_config, ca=Authority(tmp_path / "other").ca))
    assert "its certificate can't be trusted" in error.message
    assert "ca=FILE" in (error.remedy or "")


async def test_a_client_of_another_authority(tls_config: EtcdConfig, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "other").issue("client", "clientAuth")
    error = await failing(replace(tls_config, certificate=certificate, key=key))
    assert "a CA that etcd trusts" in (error.remedy or "")


async def test_http_to_one_that_serves_https(tls_config: EtcdConfig) -> None:
    error = await failing(EtcdConfig(endpoints=tls_config.endpoints))
    assert "etcds://" in (error.remedy or "")


async def test_https_to_one_that_serves_http(etcd: EtcdServer, tls_config: EtcdConfig) -> None:
    error = await failing(replace(tls_config, endpoints=etcd.config.endpoints))
    assert "does not speak TLS" in error.message


async def test_a_certificate_that_is_no_file(tls_config: EtcdConfig) -> None:
    async with EtcdClient(replace(tls_config, ca=Path("/nonexistent"))) as client:
        with pytest.raises(InputError, match="ca=/nonexistent can't be used: No such file"):
            await client.get(b"/x")


async def test_a_rotated_certificate_is_picked_up(
    tls_config: EtcdConfig, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    wrong, right = Authority(tmp_path / "other"), authority
    config = replace(tls_config, certificate=certificate, key=key)
    async with EtcdClient(config) as client:
        for number, one in enumerate((wrong, right)):
            pair = one.issue("rotated", "clientAuth")
            for path, source in zip((certificate, key), pair, strict=True):
                path.write_bytes(source.read_bytes())
                # Whatever the file system's clock is worth.
                path.touch()
                subprocess.run(["touch", "-d", f"2030-01-0{number + 1}", path], check=True)
            if one is wrong:
                with pytest.raises(StoreUnavailableError):
                    await client.get(b"/x")
        await client.get(b"/x")
        certificate.write_text("half a certif")
        await client.get(b"/x")


async def test_a_server_certificate_that_its_gateway_cannot_use(
    tmp_path: Path, authority: Authority, tls_config: EtcdConfig
) -> None:
    """A limit of etcd's JSON gateway, which people have to be told of."""
    server = secured(tmp_path / "etcd", authority, "half", "serverAuth")
    server.start()
    try:
        error = await failing(replace(tls_config, endpoints=server.config.endpoints))
    finally:
        server.stop()
    assert "clientAuth" in (error.remedy or "")


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with users, whose tokens live for a second."""
    directory = tmp_path_factory.mktemp("etcd")
    with EtcdServer(directory, options=("--auth-token-ttl", "1")) as server:
        for line in (
            "user add root:secret",
            "user grant-role root root",
            "role add net",
            "role grant-permission net readwrite /test/ --prefix",
            "user add net:p%40ss",
            "user grant-role net net",
            "auth enable",
        ):
            server.ctl(*line.split())
        yield server


@pytest.fixture
def user_config(users: EtcdServer) -> EtcdConfig:
    return replace(users.config, user="net", password="p%40ss", probe_s=0.3)


async def test_a_password_is_taken_and_its_token_renewed(
    users: EtcdServer, user_config: EtcdConfig
) -> None:
    async with EtcdClient(user_config) as client:
        listing = await client.range(b"/test/", b"/test0")
        opened = asyncio.Event()
        batches = client.watch(
            b"/test/", b"/test0", after=listing, revision=listing.revision, on_open=opened.set
        )
        waiting = asyncio.ensure_future(anext(batches))
        async with asyncio.timeout(60):
            await opened.wait()
            users.stop()
            users.start()
            with pytest.raises(StoreUnavailableError):
                await waiting
            # The server knows none of its tokens any more.
            lease = await client.grant(60)
            await client.txn([], [put(b"/test/a", b"1", lease)])
            batches = client.watch(b"/test/", b"/test0", after=listing, revision=listing.revision)
            assert (await anext(batches)).changes
            await batches.aclose()


async def test_a_key_of_others_is_not_allowed(user_config: EtcdConfig) -> None:
    async with EtcdClient(user_config) as client:
        with pytest.raises(StoreForbiddenError, match="permission denied") as caught:
            await client.get(b"/elsewhere")
        assert "grant a role of user net" in (caught.value.remedy or "")
        listing = await client.range(b"/test/", b"/test0")
        batches = client.watch(b"/", b"0", after=listing, revision=listing.revision)
        with pytest.raises(StoreForbiddenError, match="permission denied"):
            await anext(batches)


async def test_a_wrong_password(user_config: EtcdConfig) -> None:
    async with EtcdClient(replace(user_config, password="wrong")) as client:
        with pytest.raises(StoreForbiddenError) as caught:
            await client.get(b"/test/x")
    assert caught.value.remedy == "check the user and the password"


async def test_no_user_where_one_is_wanted(user_config: EtcdConfig) -> None:
    async with EtcdClient(replace(user_config, user=None)) as client:
        with pytest.raises(StoreForbiddenError, match="wants to know a user"):
            await client.get(b"/test/x")


async def test_a_user_where_none_are_known(config: EtcdConfig) -> None:
    async with EtcdClient(replace(config, user="net", password="x")) as client:
        assert await client.get(b"/test/x") is None


async def test_users_that_are_enabled_later(own_etcd: EtcdServer) -> None:
    config = replace(own_etcd.config, user="root", password="secret")
    async with EtcdClient(config) as client:
        assert await client.get(b"/test/x") is None
        for line in ("user add root:secret", "user grant-role root root", "auth enable"):
            own_etcd.ctl(*line.split())
        assert await client.get(b"/test/x") is None


async def test_a_cluster_without_a_leader(tmp_path: Path) -> None:
    """Two members, of which one is stopped: the other one must not be believed, nor waited for."""
    ports = free_port(), free_port()
    cluster = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(ports))
    members = [
        EtcdServer(tmp_path / f"m{number}", name=f"m{number}", peer_port=port, cluster=cluster)
        for number, port in enumerate(ports)
    ]
    try:
        for member in members:
            member.start(wait=False)
        config = replace(members[0].config, call_timeout_s=5.0, probe_s=0.5)
        async with EtcdClient(config) as client, asyncio.timeout(60):
            while True:
                try:
                    listing = await client.range(b"/x", b"/y")
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.05)
            opened = asyncio.Event()
            batches = client.watch(
                b"/x", b"/y", after=listing, revision=listing.revision, on_open=opened.set
            )
            waiting = asyncio.ensure_future(anext(batches))
            await opened.wait()
            members[1].stop()
            with pytest.raises(StoreUnavailableError, match=r"no leader|timed out|no answer"):
                await waiting
            with pytest.raises(StoreUnavailableError):
                await client.get(b"/x")
    finally:
        for member in members:
            member.stop()


async def test_a_named_certificate_where_there_are_users(
    tmp_path: Path, authority: Authority
) -> None:
    """Another limit of the gateway: a name in a certificate might be taken for a user's."""
    server = secured(tmp_path / "etcd", authority, "named", "serverAuth,clientAuth")
    server.start()
    try:
        config = replace(server.config, tls=True, ca=authority.ca, user="root", password="secret")
        named = authority.issue("client", "clientAuth")
        unnamed = authority.issue("client2", "clientAuth", "/O=podwire")
        with_unnamed = replace(config, certificate=unnamed[0], key=unnamed[1])
        files = ("--cacert", authority.ca, "--cert", named[0], "--key", named[1])
        for line in ("user add root:secret", "user grant-role root root", "auth enable"):
            server.ctl(*map(str, files), *line.split())
        async with EtcdClient(with_unnamed) as client:
            assert await client.get(b"/test/x") is None
        async with EtcdClient(replace(config, certificate=named[0], key=named[1])) as client:
            with pytest.raises(StoreForbiddenError, match="common name") as caught:
                await client.get(b"/test/x")
        assert "without a CN" in (caught.value.remedy or "")
    finally:
        server.stop()
