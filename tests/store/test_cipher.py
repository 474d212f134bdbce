"""Encryption at rest: without the right key nothing is served, and nothing that was altered is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.store.made import SIZE, block, key, never, outcome, page

from jevons.base.errors import ConfigError, StoreError
from jevons.facts.block import BlockMeta
from jevons.store.cipher import TAG_BYTES, Cipher, read_cipher
from jevons.store.disk import DiskStore
from jevons.store.header import HEADER_BYTES, Header, decode, encode
from jevons.store.segment import BLOCKS, HEADERS

KEY = bytes(range(32))
TENANT, OTHER_TENANT = b"tenant number 01", b"tenant number 02"
STRIDE = HEADER_BYTES + SIZE + TAG_BYTES
SEGMENT_BYTES = 4 * (STRIDE + HEADER_BYTES)


def encrypted(directory: Path, master: bytes | None = KEY, segments: int = 8) -> DiskStore:
    cipher = Cipher(master) if master else None
    size_bytes = segments * SEGMENT_BYTES + SEGMENT_BYTES // 3
    return DiskStore(directory, size_bytes, segment_bytes=SEGMENT_BYTES, cipher=cipher)


def filled(directory: Path, master: bytes | None = KEY) -> None:
    """Three blocks: of a tenant, of another, of none."""
    store = encrypted(directory, master)
    assert not store.put([block(0, tenant=TENANT), block(1, tenant=OTHER_TENANT), block(2)], never).refused
    store.close()


def outcomes(store: DiskStore) -> list[str]:
    found = [outcome(store, number) for number in range(3)]
    store.close()
    return found


def test_encrypted_blocks_are_had_again_and_their_pages_stand_nowhere(tmp_path: Path) -> None:
    filled(tmp_path)
    raw = (tmp_path / f"{0:010}{BLOCKS}").read_bytes()

    assert outcomes(encrypted(tmp_path)) == ["right"] * 3
    assert not any(page(number)[at : at + 8] in raw for number in range(3) for at in range(16, SIZE, 8))


@pytest.mark.parametrize(
    ("writing", "reading"),
    [(KEY, KEY[::-1]), (KEY, None), (None, KEY)],
    ids=["another key", "no key", "stored without a key"],
)
def test_without_the_key_they_were_stored_with_blocks_are_not_served(
    tmp_path: Path, writing: bytes | None, reading: bytes | None
) -> None:
    filled(tmp_path, writing)
    store = encrypted(tmp_path, reading)

    assert outcomes(store) == ["undecryptable"] * 3
    assert store.counts == {"undecryptable": 3}
    assert outcomes(encrypted(tmp_path, writing)) == ["right"] * 3, "they are not lost either"


def test_a_kept_block_is_as_readable_as_before(tmp_path: Path) -> None:
    store = encrypted(tmp_path)
    for number in range(100):
        assert not store.put([block(number, tenant=TENANT)], lambda k: k == key(3)).refused

    assert [outcome(store, number) for number in (2, 3, 99)] == ["missing", "right", "right"]
    store.close()
    store = encrypted(tmp_path, KEY[::-1])
    assert outcome(store, 3) == "undecryptable"
    store.close()


def seal(cipher: Cipher) -> tuple[bytes, bytes]:
    sealed = bytearray(SIZE + TAG_BYTES)
    nonce = cipher.seal(TENANT, b"what", memoryview(page(1)), memoryview(sealed))
    return nonce, bytes(sealed)


def test_equal_pages_are_never_stored_as_equal_bytes(tmp_path: Path) -> None:
    cipher = Cipher(KEY)
    sealed = [seal(cipher) for _ in range(200)]

    assert len({nonce for nonce, _ in sealed}) == len({content for _, content in sealed}) == 200


def forge(directory: Path, change: Callable[[Header], Header]) -> None:
    """Change the header of block 0, in both places, with a checksum that fits."""
    for path in (directory / f"{0:010}{BLOCKS}", directory / f"{0:010}{HEADERS}"):
        raw = path.read_bytes()
        header = next(decode(raw))
        assert header is not None
        path.write_bytes(encode(change(header)) + raw[HEADER_BYTES:])


def meta_with(header: Header, **changes: int | bytes) -> Header:
    meta: BlockMeta = msgspec.structs.replace(header.meta, **changes)
    return msgspec.structs.replace(header, meta=meta)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: meta_with(header, tenant=OTHER_TENANT),
        lambda header: meta_with(header, tenant=b""),
        lambda header: meta_with(header, depth=7),
        lambda header: meta_with(header, checksum=7),
        lambda header: msgspec.structs.replace(header, nonce=bytes(12)),
    ],
    ids=["another tenant", "no tenant", "depth", "checksum", "nonce"],
)
def test_a_header_that_was_altered_with_care_makes_its_page_undecryptable(
    tmp_path: Path, change: Callable[[Header], Header]
) -> None:
    filled(tmp_path)
    forge(tmp_path, change)

    assert outcomes(encrypted(tmp_path)) == ["undecryptable", "right", "right"]


def test_a_page_cannot_be_passed_off_as_another_block(tmp_path: Path) -> None:
    filled(tmp_path)
    forge(tmp_path, lambda header: msgspec.structs.replace(header, key=key(9)))

    assert outcomes(encrypted(tmp_path)) == ["missing", "right", "right"]
    store = encrypted(tmp_path)
    assert outcome(store, 9) == "undecryptable"
    store.close()


def test_any_flipped_bit_of_a_sealed_page_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / f"{0:010}{BLOCKS}"
    whole = path.read_bytes()
    for at in (HEADER_BYTES, HEADER_BYTES + SIZE - 1, HEADER_BYTES + SIZE, STRIDE - 1):
        raw = bytearray(whole)
        raw[at] ^= 1
        path.write_bytes(raw)
        assert outcomes(encrypted(tmp_path)) == ["undecryptable", "right", "right"]


def test_tenants_have_keys_of_their_own() -> None:
    cipher, opened = Cipher(KEY), bytearray(SIZE)
    nonce, sealed = seal(cipher)
    with pytest.raises(StoreError, match="sealed with another key, or altered since"):
        cipher.open(OTHER_TENANT, b"what", nonce, memoryview(sealed), memoryview(opened))
    cipher.open(TENANT, b"what", nonce, memoryview(sealed), memoryview(opened))

    assert opened == page(1)


def test_threads_share_a_cipher(tmp_path: Path) -> None:
    store = encrypted(tmp_path)
    store.put([block(number, tenant=TENANT) for number in range(20)], never)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: outcome(store, number % 20), range(400)))

    assert set(found) == {"right"}
    store.close()


@pytest.mark.parametrize("content", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"])
def test_a_key_file_holds_bytes_or_hexadecimal_digits(tmp_path: Path, content: bytes) -> None:
    nonce, sealed = seal(Cipher(KEY))
    opened = bytearray(SIZE)
    read_cipher(key_file(tmp_path, content)).open(TENANT, b"what", nonce, memoryview(sealed), memoryview(opened))

    assert opened == page(1)


@pytest.mark.parametrize("content", [b"", KEY[:31], KEY + b"\n", KEY.hex().encode()[:-1] + b"g", b"\xff" * 64])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=f"must hold 32 bytes or 64 hexadecimal digits, got {len(content)} bytes"):
        read_cipher(key_file(tmp_path, content))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, KEY)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=f"only its owner may have access, its mode is {mode:04o}; run chmod 600"):
        read_cipher(path)


def test_a_missing_key_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"key file .*none: cannot be read: No such file"):
        read_cipher(tmp_path / "none")


def test_a_missing_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)

    with pytest.raises(ConfigError, match=r"needs `cryptography`: pip install 'jevons\[encrypt\]'"):
        Cipher(KEY)


def key_file(directory: Path, content: bytes) -> Path:
    path = directory / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    return path
