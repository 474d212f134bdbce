"""Encryption at rest: AES-256-GCM, a key for each tenant, derived from one key file.

What is stored of a block besides its page (its name, size, depth, checksum, the tenant's tag) stays readable and is
authenticated: changing any of it makes the page undecryptable. Nonces are random, 96 bits: after 4 billion blocks
under one tenant's key the chance that two were ever equal is 1 in 4 billion (NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jevons.base.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
TENANT_KEYS = 1024  # derived keys kept at hand


class Cipher:
    """Seals and opens pages. Any number of threads may use one.

    Args:
        master: 32 bytes; every tenant's key follows from it.

    Raises:
        ConfigError: `cryptography` is not installed, or too old; the key has another length.
    """

    def __init__(self, master: bytes) -> None:
        _require_cryptography()
        if len(master) != KEY_BYTES:
            raise ConfigError(f"master: a key has {KEY_BYTES} bytes, got {len(master)}")
        self._master = master
        self._key = lru_cache(TENANT_KEYS)(self._derive)

    def seal(self, tenant: bytes, what: bytes, page: memoryview, into: memoryview) -> bytes:
        """Encrypt a page straight into `into`, which is `TAG_BYTES` longer. Returns the nonce, fresh each time.

        Args:
            tenant: whose key; empty is a tenant too.
            what: stored beside the page, unencrypted; must be given again to open it.
        """
        nonce = os.urandom(NONCE_BYTES)
        self._key(tenant).encrypt_into(nonce, page, what, into)
        return nonce

    def open(self, tenant: bytes, what: bytes, nonce: bytes, sealed: memoryview, into: memoryview) -> None:
        """Decrypt straight into `into`, which is `TAG_BYTES` shorter; after an error it holds anything.

        Raises:
            StoreError: `undecryptable`: another key, or a bit of any argument is not what was sealed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            self._key(tenant).decrypt_into(nonce, sealed, what, into)
        except InvalidTag:
            raise StoreError("undecryptable", "sealed with another key, or altered since") from None

    def _derive(self, tenant: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=b"jevons blocks", info=tenant).derive(self._master))


def read_cipher(path: Path) -> Cipher:
    """The cipher of a key file: 32 raw bytes, or 64 hexadecimal digits.

    Raises:
        ConfigError: it cannot be read, others may read it, it holds no key; or as `Cipher`.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(4 * KEY_BYTES)  # more than any key has
    except OSError as error:
        raise ConfigError(f"key file {path}: cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        rule = "only its owner may have access"
        raise ConfigError(f"key file {path}: {rule}, its mode is {stat.S_IMODE(mode):04o}; run chmod 600 {path}")
    return Cipher(_key_of(raw, path))


def _key_of(raw: bytes, path: Path) -> bytes:
    if len(raw) == KEY_BYTES:
        return raw
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:  # UnicodeDecodeError is one
        key = b""
    if len(key) != KEY_BYTES:
        rule = f"must hold {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits"
        raise ConfigError(f"key file {path}: {rule}, got {len(raw)} bytes; make one with openssl rand -hex 32")
    return key


def _require_cryptography() -> None:
    """It is an optional extra: tell at the start, not at the first block."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigError("encryption at rest needs `cryptography`: pip install 'jevons[encrypt]'") from error
    if not hasattr(AESGCM, "decrypt_into"):
        raise ConfigError("encryption at rest needs a newer `cryptography`: pip install -U 'jevons[encrypt]'")
