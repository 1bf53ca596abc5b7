"""Kubeconfigs as kubectl writes them, and every way that one can be wrong."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.cluster.kube import ClientConfig
from podwire.cluster.kube.config import ExecPlugin
from podwire.errors import InputError, UnsupportedError

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PEM_DATA = base64.b64encode(PEM).decode()


def document(
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    current: str = "one",
    **fields: Any,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://api.test:6443"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c", "user": "u", "namespace": "demo"}},
        ],
        "current-context": current,
        **fields,
    }


def write(directory: Path, content: dict[str, Any], name: str = "config") -> Path:
    path = directory / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_current_context_is_taken(tmp_path: Path) -> None:
    config = ClientConfig.from_kubeconfig(write(tmp_path, document(user={"token": "t"})))
    assert config == ClientConfig(server="https://api.test:6443", token="t")


def test_another_context_can_be_named(tmp_path: Path) -> None:
    config = ClientConfig.from_kubeconfig(write(tmp_path, document()), "two")
    assert config.namespace == "demo"


def test_inline_data_wins_over_files(tmp_path: Path) -> None:
    cluster = {
        "server": "https://api.test",
        "certificate-authority": "not-there.pem",
        "certificate-authority-data": PEM_DATA,
        "tls-server-name": "other.test",
    }
    user = {"client-certificate-data": PEM_DATA, "client-key-data": PEM_DATA}
    config = ClientConfig.from_kubeconfig(write(tmp_path, document(cluster, user)))
    assert (config.ca, config.client_certificate, config.client_key) == (PEM, PEM, PEM)
    assert config.tls_server_name == "other.test"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(PEM)
    (tmp_path / "token").write_text("t")
    cluster = {"server": "https://api.test", "certificate-authority": "ca.pem"}
    path = write(tmp_path, document(cluster, {"tokenFile": "token", "token": "stale"}))
    config = ClientConfig.from_kubeconfig(path)
    assert config.ca == tmp_path / "ca.pem"
    assert (config.token, config.token_file) == (None, tmp_path / "token")


def test_unix_sockets_and_plain_http_are_servers(tmp_path: Path) -> None:
    for server in ("unix:///run/api.sock", "http://127.0.0.1:8001", "https://[fd00::1]:6443/k/"):
        config = ClientConfig.from_kubeconfig(write(tmp_path, document({"server": server})))
        assert config.server == server.rstrip("/")


def test_impersonation_and_proxy(tmp_path: Path) -> None:
    cluster = {"server": "https://api.test", "proxy-url": "http://proxy.test:3128"}
    user = {"as": "jane", "as-groups": ["dev", "ops"], "token": "t"}
    config = ClientConfig.from_kubeconfig(write(tmp_path, document(cluster, user)))
    assert config.proxy_url == "http://proxy.test:3128"
    assert (config.impersonate_user, config.impersonate_groups) == ("jane", ("dev", "ops"))


def test_exec_plugins(tmp_path: Path) -> None:
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "./login",
            "args": ["--cluster", "c"],
            "env": [{"name": "A", "value": "b"}],
            "provideClusterInfo": True,
            "installHint": "install login",
            "interactiveMode": "Never",
        }
    }
    config = ClientConfig.from_kubeconfig(write(tmp_path, document(user=user)))
    assert config.exec_plugin == ExecPlugin(
        command=str(tmp_path / "login"),
        arguments=("--cluster", "c"),
        environment={"A": "b"},
        api_version="client.authentication.k8s.io/v1beta1",
        install_hint="install login",
        provide_cluster_info=True,
    )


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    user = {"token": "s3cret", "password": "s3cret", "username": "u"}
    assert "s3cret" not in repr(ClientConfig.from_kubeconfig(write(tmp_path, document(user=user))))


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        ({"clusters": "x"}, "clusters", "expected `array | null`, got `str`"),
        (document({"server": 5}), "clusters[0].cluster.server", "expected `str`, got `int`"),
        (document({"server": "api.test"}), "clusters[0].cluster.server", "unix:///PATH"),
        (document({"server": "https://a:b"}), "clusters[0].cluster.server", "https://HOST:PORT"),
        (document({"server": "unix://"}), "clusters[0].cluster.server", "unix:///PATH"),
        (
            document({"server": "https://a", "certificate-authority": "gone.pem"}),
            "clusters[0].cluster.certificate-authority",
            "no such file",
        ),
        (
            document({"server": "https://a", "certificate-authority-data": "!!"}),
            "clusters[0].cluster.certificate-authority-data",
            "expected base64",
        ),
        (
            document({"server": "https://a", "certificate-authority-data": "aGVsbG8="}),
            "clusters[0].cluster.certificate-authority-data",
            "it is none",
        ),
        (
            document(
                {
                    "server": "https://a",
                    "certificate-authority-data": PEM_DATA,
                    "insecure-skip-tls-verify": True,
                }
            ),
            "clusters[0].cluster.insecure-skip-tls-verify",
            "excludes",
        ),
        (
            document({"server": "https://a", "proxy-url": "socks5://p"}),
            "clusters[0].cluster.proxy-url",
            "http",
        ),
        (
            document(user={"client-certificate-data": PEM_DATA}),
            "users[0].user.client-key",
            "go together",
        ),
        (document(user={"tokenFile": "gone"}), "users[0].user.tokenFile", "no such file"),
        (
            document(user={"exec": {"command": "x", "apiVersion": "v0"}}),
            "users[0].user.exec.apiVersion",
            "expected one of",
        ),
        (document(current="gone"), "current-context", "not among contexts"),
        (document(current=""), "current-context", "not set"),
        (
            document(contexts=[{"name": "one", "context": {"cluster": "gone", "user": "u"}}]),
            "contexts[0].context.cluster",
            "not among clusters",
        ),
        (
            document(contexts=[{"name": "one", "context": {"cluster": "c", "user": "gone"}}]),
            "contexts[0].context.user",
            "not among users",
        ),
    ],
)
def test_what_is_wrong_is_named_with_field_and_file(
    tmp_path: Path, content: dict[str, Any], field: str, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        ClientConfig.from_kubeconfig(path)
    assert caught.value.field == field
    assert message in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize("text", ["a: [", "a: " + "[" * 100_000])
def test_garbage_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(InputError, match="not valid YAML"):
        ClientConfig.from_kubeconfig(path)


@pytest.mark.parametrize(
    "user",
    [
        {"auth-provider": {"name": "gcp"}},
        {"as-user-extra": {"a": ["b"]}},
        {"exec": {"command": "x", "interactiveMode": "Always"}},
    ],
)
def test_an_identity_we_cannot_take_on_is_refused(tmp_path: Path, user: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"users\[0\]"):
        ClientConfig.from_kubeconfig(write(tmp_path, document(user=user)))


def test_several_files_are_merged_and_the_first_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(
        tmp_path,
        {
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "mine"}}],
            "users": [{"name": "mine", "user": {"token": "first"}}],
        },
        "first",
    )
    second = write(tmp_path, document(user={"token": "second"}), "second")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path}/gone:{second}")
    config = ClientConfig.load()
    assert (config.server, config.token) == ("https://api.test:6443", "first")


def test_a_flag_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "gone"))
    path = write(tmp_path, document({"server": "http://flag"}))
    assert ClientConfig.load(path).server == "http://flag"
    with pytest.raises(InputError, match="KUBECONFIG"):
        ClientConfig.load()


def test_in_cluster_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(PEM)
    (tmp_path / "namespace").write_text("kube-system\n")
    config = ClientConfig.in_cluster(tmp_path)
    assert config.server == "https://[fd00::1]:443"
    assert (config.namespace, config.token_file) == ("kube-system", tmp_path / "token")
    assert config.ca == tmp_path / "ca.crt"


def test_nothing_anywhere_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        ClientConfig.load()
    assert caught.value.remedy is not None
    assert "lab up" in caught.value.remedy
