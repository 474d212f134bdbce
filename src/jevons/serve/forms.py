"""How tokens become text: what each adds by itself, and how that is put together piece by piece."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from jevons.base.errors import ModelError

ONE_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Utf8Text:
    """Bytes put together to UTF-8; U+FFFD for each longest part that begins no character, as Rust and Unicode do."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, pieces: list[Any]) -> str:
        return self._utf8.decode(b"".join(pieces))

    def end(self) -> str:
        return self._utf8.decode(b"", final=True)


class FallbackText:
    """Strings, and runs of single bytes between them: a run that is not UTF-8 as a whole becomes U+FFFD byte by byte.

    So nothing of a run is certain before it ends; that is what Hugging Face's `ByteFallback` decoder does.
    """

    def __init__(self, strip: bool) -> None:
        self._run = b""
        self._strip = strip  # the first character of the whole text goes if it is a space

    def add(self, pieces: list[Any]) -> str:
        parts: list[str] = []
        for piece in pieces:
            if isinstance(piece, bytes):
                self._run += piece
            else:
                parts += [self._end_run(), piece]
        return self._stripped("".join(parts))

    def end(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, b""
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        self._strip = False
        return text.removeprefix(" ")


class ByteLevelForm:
    """GPT-2's way: every byte has a printable stand-in character, tokens are strings of those."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        stand_ins = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
        self._bytes = {stand_in: byte for byte, stand_in in stand_ins.items()}
        self._alphabet = frozenset(map(chr, self._bytes))

    def piece(self, token: str) -> bytes:
        """A token with any character that stands for no byte is taken as it is written: an added token."""
        if self._alphabet.issuperset(token):
            return token.translate(self._bytes).encode("latin-1")
        return token.encode()

    def fresh(self) -> Utf8Text:
        return Utf8Text()


class FallbackForm:
    """SentencePiece's way: tokens are text with ▁ for space, and <0x0A> for bytes no token covers."""

    def __init__(self, strip: bool) -> None:
        self._strip = strip

    def piece(self, token: str) -> bytes | str:
        if byte := ONE_BYTE.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ")

    def fresh(self) -> FallbackText:
        return FallbackText(self._strip)


def text_form(decoder: Any, model_dir: Path) -> ByteLevelForm | FallbackForm:
    """How this tokenizer's tokens become text, from the `decoder` of its tokenizer.json."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelForm()
    replaces = steps[:1] and steps[0].get("pattern") == {"String": "▁"} and steps[0].get("content") == " "
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and replaces:
        last = steps[3:]
        if not last:
            return FallbackForm(strip=False)
        if last == [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            return FallbackForm(strip=True)
    raise ModelError(
        f"{model_dir / 'tokenizer.json'}: decoder must be ByteLevel, or Replace ▁, ByteFallback, Fuse and maybe Strip; "
        f"got {' + '.join(kinds) or 'none'}"
    )
