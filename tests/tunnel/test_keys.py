"""A node's own key, in its file."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest

from podwire.errors import InputError, PodwireError
from podwire.tunnel.keys import decode_key, encode_key, load_or_create_key, public_key


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "podwire" / "tunnel.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert base64.b64decode(path.read_text().rstrip("\n")) == key
    assert [entry.name for entry in path.parent.iterdir()] == ["tunnel.key"]


def test_the_public_key_is_x25519s() -> None:
    """The responder's static keys in Cacophony's vectors for Noise."""
    private = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"
    public = "31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62"
    assert public_key(bytes.fromhex(private)).hex() == public


def test_all_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.key"
    keys: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: keys.append(load_or_create_key(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.key"
    load_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="may read this private key"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"AAAA", b"not base64 at all, is it?"])
def test_what_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tunnel.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="not an X25519 private key"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_where_no_key_can_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PodwireError, match="cannot keep the tunnel's key"):
        load_or_create_key(tmp_path / "file" / "tunnel.key")


def test_keys_as_text() -> None:
    key = bytes(range(32))
    assert decode_key(encode_key(key) + "\n", field="publicKey") == key
    with pytest.raises(InputError, match=r"^publicKey: "):
        decode_key("AAAA", field="publicKey")
