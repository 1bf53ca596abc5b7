"""What a store may be called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from podwire.cluster.etcd.url import EtcdConfig, parse_url
from podwire.errors import InputError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("etcd://h1", EtcdConfig(endpoints=("h1:2379",))),
        ("etcd://h1/", EtcdConfig(endpoints=("h1:2379",))),
        ("etcds://h1:1", EtcdConfig(endpoints=("h1:1",), tls=True)),
        (
            "etcd://h1:2379,10.0.0.2,[fd00::3]:4,[::4]/my/net/",
            EtcdConfig(
                endpoints=("h1:2379", "10.0.0.2:2379", "[fd00::3]:4", "[::4]:2379"),
                prefix="/my/net",
            ),
        ),
        ("etcd://h1//a//b%20c", EtcdConfig(endpoints=("h1:2379",), prefix="/a/b c")),
        (
            "etcd://h1?ca=/a/ca.crt&cert=/a/b%26c&key=k",
            EtcdConfig(
                endpoints=("h1:2379",),
                tls=True,
                ca=Path("/a/ca.crt"),
                certificate=Path("/a/b&c"),
                key=Path("k"),
            ),
        ),
        (
            "etcd://me%40home:p%3Aw%2F@h1/x",
            EtcdConfig(endpoints=("h1:2379",), prefix="/x", user="me@home", password="p:w/"),
        ),
        ("etcd://me:@h1", EtcdConfig(endpoints=("h1:2379",), user="me", password="")),
    ],
)
def test_what_is_read(text: str, wanted: EtcdConfig) -> None:
    assert parse_url(text, {}) == wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://h1", "expected etcd://"),
        ("etcd:h1", "expected etcd://"),
        ("etcd://", "'' is not HOST:PORT"),
        ("etcd://h1,", "'' is not HOST:PORT"),
        ("etcd://fd00::1", "'fd00::1' is not HOST:PORT"),
        ("etcd://h1:0", "'0' is not a port"),
        ("etcd://h1:x", "'x' is not a port"),
        ("etcd://h1,h1:2379", "there twice"),
        ("etcd://:secret@h1", "no user"),
        ("etcd://me@h1", "no password for user me"),
        ("etcd://h1?password-file=/x", "no user"),
        ("etcd://me:secret@h1?password-file=/x", "a password and a password-file"),
        ("etcd://me@h1?password-file=/nonexistent", "/nonexistent: No such file"),
        ("etcd://h1?ca", "ca has no value"),
        ("etcd://h1?ca=a&ca=b", "there twice"),
        ("etcd://h1?cacert=x", "'cacert' is none of its options"),
        ("etcd://h1?cert=x", "key is missing"),
        ("etcd://h1?key=x", "cert is missing"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_url(text, {})
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("--store: ")
    assert "secret" not in str(caught.value)


def test_the_password_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n")
    environment = {"PODWIRE_ETCD_PASSWORD": "from the environment"}
    given = parse_url(f"etcd://me@h1?password-file={file}", environment)
    assert given.password == "from the file"
    assert parse_url("etcd://me@h1", environment).password == "from the environment"
    assert parse_url("etcd://h1", environment).password is None


def test_the_password_is_never_shown() -> None:
    config = parse_url("etcd://me:secret@h1,h2/x", {})
    assert config.title == "etcd://me@h1:2379,h2:2379/x"
    assert "secret" not in repr(config)
    assert replace(config, tls=True).urls == ("https://h1:2379", "https://h2:2379")
