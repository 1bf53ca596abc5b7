"""Getting in: TLS both ways, tokens that rotate, credential plugins, and clear refusals."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from podwire.cluster.kube import NAMESPACES, ClientConfig, KubeClient
from podwire.errors import ApiUnavailableError, ForbiddenError, InputError, PodwireError

from .api_process import ApiProcess
from .tls_front import Certificates, TlsFront


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.make()
    return made


@pytest.fixture
async def front(api: ApiProcess, certificates: Certificates) -> AsyncIterator[TlsFront]:
    proxy = TlsFront(certificates, api.socket)
    await proxy.open()
    yield proxy
    await proxy.close()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Callable[[dict[str, Any], dict[str, Any]], Path]:
    """Writes a kubeconfig for one cluster and user."""

    def write(cluster: dict[str, Any], user: dict[str, Any]) -> Path:
        path = tmp_path / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(document))
        return path

    return write


async def namespaces(config: ClientConfig) -> set[str]:
    async with KubeClient(config) as client:
        return {item["metadata"]["name"] for item in (await client.list(NAMESPACES)).items}


def inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def test_a_kubeconfig_with_everything_inline(
    api: ApiProcess,
    certificates: Certificates,
    kubeconfig: Callable[[dict[str, Any], dict[str, Any]], Path],
) -> None:
    front = TlsFront(certificates, api.socket, wants_certificate=True)
    await front.open()
    try:
        path = kubeconfig(
            {
                "server": front.url,
                "certificate-authority-data": inline(certificates.file("ca.crt")),
            },
            {
                "client-certificate-data": inline(certificates.file("client.crt")),
                "client-key-data": inline(certificates.file("client.key")),
            },
        )
        assert "default" in await namespaces(ClientConfig.from_kubeconfig(path))
        if shutil.which("kubectl"):
            assert "namespace/default" in await kubectl(path, "get", "ns", "-o", "name")
    finally:
        await front.close()


async def kubectl(kubeconfig: Path, *arguments: str) -> str:
    """What kubectl makes of the same file."""
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        *arguments,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output.decode()


async def test_files_work_as_well(front: TlsFront, certificates: Certificates) -> None:
    front.token = "t"
    config = ClientConfig(
        server=front.url,
        ca=certificates.file("ca.crt"),
        client_certificate=certificates.file("client.crt"),
        client_key=certificates.file("client.key"),
        token="t",
    )
    assert "default" in await namespaces(config)


async def test_a_server_that_we_do_not_trust_is_not_talked_to(front: TlsFront) -> None:
    with pytest.raises(ApiUnavailableError) as caught:
        await namespaces(ClientConfig(server=front.url, token="t"))
    assert "cannot trust" in caught.value.message
    assert "certificate-authority" in (caught.value.remedy or "")
    assert front.headers_seen == []


async def test_a_certificate_for_another_name(front: TlsFront, certificates: Certificates) -> None:
    ca = certificates.file("ca.crt")
    localhost = front.url.replace("127.0.0.1", "localhost")
    with pytest.raises(ApiUnavailableError, match="cannot trust"):
        await namespaces(ClientConfig(server=localhost, ca=ca))
    mended = ClientConfig(server=localhost, ca=ca, tls_server_name="api.test")
    assert "default" in await namespaces(mended)


async def test_verification_can_be_left_out(front: TlsFront) -> None:
    config = ClientConfig(server=front.url, insecure_skip_tls_verify=True)
    assert "default" in await namespaces(config)


async def test_a_key_that_is_none(front: TlsFront, certificates: Certificates) -> None:
    config = ClientConfig(
        server=front.url,
        ca=certificates.file("ca.crt"),
        client_certificate=certificates.file("client.crt"),
        client_key=certificates.file("ca.key"),
    )
    with pytest.raises(InputError, match="client-certificate"):
        await namespaces(config)


async def test_a_ca_that_is_none(front: TlsFront) -> None:
    with pytest.raises(InputError, match="certificate-authority"):
        await namespaces(ClientConfig(server=front.url, ca=b"-----BEGIN nothing"))


async def test_a_wrong_token_is_refused_with_a_remedy(
    front: TlsFront, certificates: Certificates
) -> None:
    front.token = "right"
    config = ClientConfig(server=front.url, ca=certificates.file("ca.crt"), token="wrong")
    with pytest.raises(ForbiddenError) as caught:
        await namespaces(config)
    assert "token" in (caught.value.remedy or "")


async def test_a_rotated_token_file_is_read_again(
    front: TlsFront, certificates: Certificates, tmp_path: Path
) -> None:
    """As a kubelet rotates it: the name is a link, which is swapped."""
    for version in ("one", "two"):
        (tmp_path / version).write_text(f"{version}\n")
    (tmp_path / "token").symlink_to("one")
    front.token = "one"
    config = ClientConfig(
        server=front.url, ca=certificates.file("ca.crt"), token_file=tmp_path / "token"
    )
    async with KubeClient(config) as client:
        await client.list(NAMESPACES)
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(tmp_path / "token")
        front.token = "two"
        await client.list(NAMESPACES)
    assert [seen["Authorization"] for seen in front.headers_seen] == ["Bearer one", "Bearer two"]


async def test_a_token_file_that_is_gone(front: TlsFront, certificates: Certificates) -> None:
    config = ClientConfig(
        server=front.url, ca=certificates.file("ca.crt"), token_file=Path("/nonexistent/token")
    )
    with pytest.raises(PodwireError, match="/nonexistent/token"):
        await namespaces(config)


async def test_a_credential_plugin_is_asked_again_when_its_token_ends(
    front: TlsFront,
    certificates: Certificates,
    kubeconfig: Callable[[dict[str, Any], dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    plugin = tmp_path / "login"
    plugin.write_text(
        "#!/bin/sh\n"
        f'echo "$KUBERNETES_EXEC_INFO" >> {tmp_path}/calls\n'
        f"n=$(wc -l < {tmp_path}/calls)\n"
        "end=2000-01-01T00:00:00Z; [ $n -gt 1 ] && end=2100-01-01T00:00:00Z\n"
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        '"status":{"token":"%s","expirationTimestamp":"%s"}}\' "$WORD$n" $end\n'
    )
    plugin.chmod(0o755)
    path = kubeconfig(
        {"server": front.url, "certificate-authority": str(certificates.file("ca.crt"))},
        {
            "exec": {
                "command": "./login",
                "env": [{"name": "WORD", "value": "token"}],
                "provideClusterInfo": True,
            }
        },
    )
    async with KubeClient(ClientConfig.from_kubeconfig(path)) as client:
        for _ in range(3):
            await client.list(NAMESPACES)
    tokens = [seen["Authorization"] for seen in front.headers_seen]
    assert tokens == ["Bearer token1", "Bearer token2", "Bearer token2"]
    info = json.loads((tmp_path / "calls").read_text().splitlines()[0])
    assert info["spec"]["cluster"]["server"] == front.url
    # What a plugin goes by, and the kubeconfig leaves out here.
    assert info["apiVersion"] == "client.authentication.k8s.io/v1"


@pytest.mark.parametrize(
    ("script", "message"), [("exit 3", "ended with 3"), ("echo hello", "no ExecCredential")]
)
async def test_a_credential_plugin_that_fails(
    front: TlsFront,
    kubeconfig: Callable[[dict[str, Any], dict[str, Any]], Path],
    tmp_path: Path,
    script: str,
    message: str,
) -> None:
    plugin = tmp_path / "login"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o755)
    path = kubeconfig(
        {"server": front.url, "insecure-skip-tls-verify": True}, {"exec": {"command": "./login"}}
    )
    with pytest.raises(PodwireError, match=message):
        await namespaces(ClientConfig.from_kubeconfig(path))


async def test_impersonation_and_passwords_are_headers(front: TlsFront) -> None:
    config = ClientConfig(
        server=front.url,
        insecure_skip_tls_verify=True,
        username="u",
        password="p",
        impersonate_user="jane",
        impersonate_groups=("dev",),
    )
    await namespaces(config)
    seen = front.headers_seen[0]
    assert seen["Authorization"] == f"Basic {base64.b64encode(b'u:p').decode()}"
    assert (seen["Impersonate-User"], seen["Impersonate-Group"]) == ("jane", "dev")


async def test_a_server_that_says_later_is_asked_later(front: TlsFront) -> None:
    front.throttle = 1
    config = ClientConfig(server=front.url, insecure_skip_tls_verify=True)
    assert "default" in await namespaces(config)
    assert len(front.headers_seen) == 2
