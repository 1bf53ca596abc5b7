"""The handshake, against a published vector and against what may not be accepted."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.tunnel.noise import (
    FIRST_OVERHEAD,
    SECOND_OVERHEAD,
    HandshakeRefusedError,
    Initiator,
    Responder,
    StaticKey,
)

# The vector for Noise_IK_25519_AESGCM_SHA256 in Cacophony's set, which Noise's implementations
# check each other with: keys, payloads and the very bytes on the wire.
PROLOGUE = b"John Galt"
INITIATOR_STATIC = "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"
INITIATOR_EPHEMERAL = "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"
RESPONDER_STATIC = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"
RESPONDER_EPHEMERAL = "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"
RESPONDER_PUBLIC = "31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62"
FIRST = (
    b"Ludwig von Mises",
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
    "4e417bc55c7a8166c993356c1be41ef67818a292426f301556c7f26b21d25ddb"
    "097153891a9a956cff47b83e63ad8d701c1342c209cff1ca5ecd43402762ac24"
    "9e3bd3a4c0a145fe07cb5dae28ea13a3",
)
SECOND = (
    b"Murray Rothbard",
    "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
    "af2ccf9972e22afc67aeafcd25162f7f98c363b7762e3e4cb7d272e39f27a5",
)
#: Transport messages: whether the initiator sends, its how-manieth, plaintext and ciphertext.
TRANSPORT = [
    (True, 0, b"F. A. Hayek", "66acfc92e3197de166809e6d4d5d003dcc819a84bc3522ca53c9d9"),
    (False, 0, b"Carl Menger", "71f89aa6533a6de70b0826864dd75f60806ee40170c16290189eb3"),
    (
        True,
        1,
        b"Jean-Baptiste Say",
        "4795a3423550c8bf00386bd496a3e2c76c10669d2a75ab8f79b5094c5412a25705",
    ),
    (
        False,
        1,
        b"Eugen B\xf6hm von Bawerk",
        "aa0bb39097555c918e40be82abc2b909eb79d9eb87adb07e268fc37323a6cf904fd01fb391",
    ),
]


def _key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def test_the_published_vector_byte_by_byte() -> None:
    us = StaticKey(bytes.fromhex(INITIATOR_STATIC))
    them = StaticKey(bytes.fromhex(RESPONDER_STATIC))
    assert them.public.hex() == RESPONDER_PUBLIC

    initiator = Initiator(
        us, them.public, us.shared(them.public), PROLOGUE, _key(INITIATOR_EPHEMERAL)
    )
    first = initiator.first(FIRST[0])
    assert first.hex() == FIRST[1]
    assert len(first) == FIRST_OVERHEAD + len(FIRST[0])

    responder = Responder(them, PROLOGUE)
    assert responder.identity(first) == us.public
    assert responder.payload(them.shared(us.public)) == FIRST[0]
    second, responder_send, responder_receive = responder.second(
        SECOND[0], _key(RESPONDER_EPHEMERAL)
    )
    assert second.hex() == SECOND[1]
    assert len(second) == SECOND_OVERHEAD + len(SECOND[0])

    payload, send, receive = initiator.finish(second)
    assert payload == SECOND[0]
    assert (send, receive) == (responder_receive, responder_send)
    for from_initiator, counter, plaintext, ciphertext in TRANSPORT:
        key = send if from_initiator else receive
        sealed = AESGCM(key).encrypt(counter.to_bytes(12, "big"), plaintext, None)
        assert sealed.hex() == ciphertext


def _pair() -> tuple[StaticKey, StaticKey]:
    return StaticKey(bytes([1]) * 32), StaticKey(bytes([2]) * 32)


def test_two_handshakes_of_the_same_ends_share_no_key() -> None:
    us, them = _pair()
    keys = set()
    for _ in range(2):
        initiator = Initiator(us, them.public, us.shared(them.public), PROLOGUE)
        responder = Responder(them, PROLOGUE)
        responder.identity(initiator.first(b""))
        responder.payload(them.shared(us.public))
        keys |= {*initiator.finish(responder.second(b"")[0])[1:]}
    assert len(keys) == 4


@settings(max_examples=25)
@given(st.integers(0, FIRST_OVERHEAD + 11), st.integers(1, 255))
def test_a_first_message_with_any_byte_changed_is_refused(at: int, flip: int) -> None:
    us, them = _pair()
    first = bytearray(Initiator(us, them.public, us.shared(them.public), PROLOGUE).first(b"t" * 12))
    first[at] ^= flip
    responder = Responder(them, PROLOGUE)
    with pytest.raises(HandshakeRefusedError):
        responder.identity(bytes(first))
        responder.payload(them.shared(us.public))


@settings(max_examples=25)
@given(st.integers(0, SECOND_OVERHEAD - 1), st.integers(1, 255))
def test_a_second_message_with_any_byte_changed_is_refused(at: int, flip: int) -> None:
    us, them = _pair()
    initiator = Initiator(us, them.public, us.shared(them.public), PROLOGUE)
    responder = Responder(them, PROLOGUE)
    responder.identity(initiator.first(b""))
    responder.payload(them.shared(us.public))
    right = responder.second(b"")[0]
    second = bytearray(right)
    second[at] ^= flip
    with pytest.raises(HandshakeRefusedError):
        initiator.finish(bytes(second))
    initiator.finish(right)  # which a forged one before it has not spoilt


def test_another_version_of_the_protocol_is_refused() -> None:
    us, them = _pair()
    first = Initiator(us, them.public, us.shared(them.public), b"version 1").first(b"")
    with pytest.raises(HandshakeRefusedError):
        Responder(them, b"version 2").identity(first)


def test_who_only_claims_an_identity_is_refused() -> None:
    """A public key is public: naming it as one's own must not be enough."""
    us, them = _pair()
    impostor = StaticKey(bytes([3]) * 32)
    impostor.public = us.public
    first = Initiator(impostor, them.public, impostor.shared(them.public), PROLOGUE).first(b"")
    responder = Responder(them, PROLOGUE)
    assert responder.identity(first) == us.public
    with pytest.raises(HandshakeRefusedError):
        responder.payload(them.shared(us.public))


def test_a_message_cut_short_is_refused() -> None:
    us, them = _pair()
    first = Initiator(us, them.public, us.shared(them.public), PROLOGUE).first(b"")
    for length in range(0, len(first), 7):
        responder = Responder(them, PROLOGUE)
        with pytest.raises(HandshakeRefusedError):
            responder.identity(first[:length])
            responder.payload(them.shared(us.public))


def test_a_public_key_of_small_order_is_refused() -> None:
    """X25519 with it gives the same secret whatever the private key is."""
    us, _ = _pair()
    for public in (bytes(32), bytes([1]) + bytes(31)):
        with pytest.raises(HandshakeRefusedError):
            us.shared(public)
