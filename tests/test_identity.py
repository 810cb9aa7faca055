"""The identity file is private, whole and never overwritten; the peer id is libp2p's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.errors import BadSignature, IdentityError
from finode.identity import Identity, peer_id_of, public_key_of, verify


def test_the_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"

    created = Identity.create(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).peer_id == created.peer_id
    assert Identity.load(path).seed() == created.seed() == path.read_bytes()


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    before = Identity.create(path)

    with pytest.raises(IdentityError, match=str(path)):
        Identity.create(path)

    assert Identity.load(path).peer_id == before.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    path.chmod(mode)

    with pytest.raises(IdentityError, match=f"{mode:04o}") as refused:
        Identity.load(path)

    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_what_is_not_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(IdentityError, match=f"{len(content)} bytes instead of 32"):
        Identity.load(path)


def test_a_missing_identity_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="finode init"):
        Identity.load(tmp_path / "identity.key")


def test_a_folder_is_no_identity(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot read"):
        Identity.load(tmp_path)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="nowhere"):
        Identity.create(tmp_path / "nowhere" / "identity.key")


def test_the_key_is_not_shown() -> None:
    identity = Identity.from_seed(bytes(range(32)))

    assert repr(identity) == f"Identity({identity.peer_id})"
    assert bytes(range(32)).hex() not in f"{identity!r} {identity}"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_key(seed: bytes) -> None:
    identity = Identity.from_seed(seed)

    assert peer_id_of(public_key_of(identity.peer_id)) == identity.peer_id
    assert identity.peer_id.startswith("12D3KooW")


@given(st.text(max_size=80))
def test_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(IdentityError):
        public_key_of(text)


@pytest.mark.parametrize("change", ["{}\n", "{} ", "1{}", " {}", "{}1", "{}é"])
def test_a_key_has_one_peer_id_only(change: str) -> None:
    with pytest.raises(IdentityError):
        public_key_of(change.format(Identity.from_seed(bytes(32)).peer_id))


def test_a_signature_is_of_one_key_and_one_text() -> None:
    first, second = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1] * 32))
    signature = first.sign(b"text")

    verify(first.peer_id, signature, b"text")
    for peer, signed, text in (
        (second.peer_id, signature, b"text"),
        (first.peer_id, signature, b"texts"),
        (first.peer_id, bytes(64), b"text"),
        (first.peer_id, b"", b"text"),
        ("nobody", signature, b"text"),
    ):
        with pytest.raises(BadSignature):
            verify(peer, signed, text)


def test_two_identities_differ() -> None:
    assert Identity.generate().peer_id != Identity.generate().peer_id


@pytest.mark.slow
def test_the_peer_id_is_what_libp2p_computes() -> None:
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer_ids = pytest.importorskip("libp2p.peer.id")
    for seed in (bytes(32), bytes(range(32)), b"\xff" * 32):
        pair = ed25519.create_new_key_pair(seed=seed)
        assert Identity.from_seed(seed).peer_id == peer_ids.ID.from_pubkey(pair.public_key).to_base58()
