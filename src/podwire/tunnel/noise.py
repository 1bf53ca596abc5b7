"""The Noise handshake IK between two ends that know each other's public keys: bytes in, bytes out.

What lives here: `Noise_IK_25519_AESGCM_SHA256` (The Noise Protocol Framework, revision 34) and
nothing of datagrams, peers, time or sessions.

    <- s                 the initiator knows the responder's static key before
    …
    -> e, es, s, ss      its ephemeral key, and its static one encrypted; then a payload
    <- e, ee, se         the responder's ephemeral key; then a payload

Two messages, and then both ends hold the same two keys, one a direction, that neither static key
alone gives away afterwards. Each key of the handshake itself encrypts one thing only, so the nonce
is 0 throughout. `ss` depends on the two static keys alone: whoever meets a peer again gives it
ready, which leaves a forged first message one X25519 operation to cost (`Responder.identity`).

AES-GCM rather than ChaCha20-Poly1305, as both ends of a cluster's network have AES in hardware:
docs/reference/tunnel-encryption.md has the measurements.
"""

from __future__ import annotations

import hashlib
import hmac
from copy import copy

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from podwire.errors import PodwireError

KEY_SIZE = 32
TAG_SIZE = 16
#: What both messages are longer than their payloads by.
FIRST_OVERHEAD = KEY_SIZE + KEY_SIZE + TAG_SIZE + TAG_SIZE
SECOND_OVERHEAD = KEY_SIZE + TAG_SIZE

_PROTOCOL = b"Noise_IK_25519_AESGCM_SHA256"
_NONCE = bytes(12)


class HandshakeRefusedError(PodwireError):
    """A message is not what the holder of the expected key would have sent to this end."""


class StaticKey:
    """An end's own long-lived key pair. `public` is what its peers know it by."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, public: bytes) -> bytes:
        """X25519 with another's public key; raises HandshakeRefusedError for one of small order."""
        return _exchange(self._private, public)


class _Transcript:
    """Noise's SymmetricState: all that was said so far, and the key that both ends have from it."""

    __slots__ = ("_cipher", "chaining", "hash")

    _cipher: AESGCM  # from the first `mix_key` on; IK encrypts nothing before

    def __init__(self, prologue: bytes, responder: bytes) -> None:
        self.chaining = self.hash = _PROTOCOL.ljust(32, b"\0")
        self.mix_hash(prologue)
        self.mix_hash(responder)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self.chaining, key = _derive(self.chaining, material)
        self._cipher = AESGCM(key)

    def encrypt(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt(_NONCE, plaintext, self.hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: bytes) -> bytes:
        try:
            plaintext = self._cipher.decrypt(_NONCE, ciphertext, self.hash)
        except InvalidTag:
            raise HandshakeRefusedError("a handshake message fails authentication") from None
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The keys of the session: of what the initiator sends, of what the responder sends."""
        return _derive(self.chaining, b"")


class Initiator:
    """One end's handshake from `first` to `finish`."""

    __slots__ = ("_ephemeral", "_remote", "_ss", "_static", "_transcript")

    def __init__(
        self,
        static: StaticKey,
        remote: bytes,
        ss: bytes,
        prologue: bytes,
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        self._static = static
        self._remote = remote
        self._ss = ss
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._transcript = _Transcript(prologue, remote)

    def first(self, payload: bytes) -> bytes:
        """The first message, to be made once."""
        transcript = self._transcript
        public = self._ephemeral.public_key().public_bytes_raw()
        transcript.mix_hash(public)
        transcript.mix_key(_exchange(self._ephemeral, self._remote))
        static = transcript.encrypt(self._static.public)
        transcript.mix_key(self._ss)
        return public + static + transcript.encrypt(payload)

    def finish(self, message: bytes) -> tuple[bytes, bytes, bytes]:
        """The second message's payload, the key to send with, the key to receive with.

        Raises HandshakeRefusedError, and then still waits for the right message: who can forge
        one, but not make a valid one, ends nothing.
        """
        transcript = copy(self._transcript)
        public = message[:KEY_SIZE]
        transcript.mix_hash(public)
        transcript.mix_key(_exchange(self._ephemeral, public))
        transcript.mix_key(self._static.shared(public))
        payload = transcript.decrypt(message[KEY_SIZE:])
        send, receive = transcript.split()
        return payload, send, receive


class Responder:
    """The other end's, in three steps, so that it may stop after each: a first message is cheap
    to send and dear to answer."""

    __slots__ = ("_message", "_remote_ephemeral", "_static", "_transcript", "remote")

    def __init__(self, static: StaticKey, prologue: bytes) -> None:
        self._static = static
        self._transcript = _Transcript(prologue, static.public)
        self._message = b""
        self._remote_ephemeral = b""
        self.remote = b""

    def identity(self, message: bytes) -> bytes:
        """The static public key that the first message's sender claims; nothing proves it yet.

        Raises HandshakeRefusedError.
        """
        transcript = self._transcript
        self._message = message
        self._remote_ephemeral = message[:KEY_SIZE]
        transcript.mix_hash(self._remote_ephemeral)
        transcript.mix_key(self._static.shared(self._remote_ephemeral))
        self.remote = transcript.decrypt(message[KEY_SIZE : 2 * KEY_SIZE + TAG_SIZE])
        return self.remote

    def payload(self, ss: bytes) -> bytes:
        """The first message's payload, which proves that it is from the holder of that key.

        Raises HandshakeRefusedError.
        """
        self._transcript.mix_key(ss)
        return self._transcript.decrypt(self._message[2 * KEY_SIZE + TAG_SIZE :])

    def second(
        self, payload: bytes, ephemeral: X25519PrivateKey | None = None
    ) -> tuple[bytes, bytes, bytes]:
        """The second message, the key to send with, the key to receive with."""
        transcript = self._transcript
        own = ephemeral or X25519PrivateKey.generate()
        public = own.public_key().public_bytes_raw()
        transcript.mix_hash(public)
        transcript.mix_key(_exchange(own, self._remote_ephemeral))
        transcript.mix_key(_exchange(own, self.remote))
        message = public + transcript.encrypt(payload)
        receive, send = transcript.split()
        return message, send, receive


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # of small order, or not 32 bytes
        raise HandshakeRefusedError("a public key is none of X25519's") from None


def _derive(chaining: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs (section 4.3)."""
    secret = hmac.digest(chaining, material, "sha256")
    one = hmac.digest(secret, b"\x01", "sha256")
    return one, hmac.digest(secret, one + b"\x02", "sha256")
