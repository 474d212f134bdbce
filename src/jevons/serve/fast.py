"""Encoding ten times as fast as Hugging Face's tokenizers, to the same ids: fastokens, proven before it is used.

It is another program for the same tokenizer.json, so what it may get wrong is a corner of some model's rules. Both
encode texts made to reach such corners first; where one differs, the model keeps Hugging Face's. Afterwards one text in
`CHECK_EVERY`, or a part of it, is encoded by both: one that differs ends the fast way for good, and is told.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence

import tokenizers

from jevons.serve.seams import STEP, Parts, parts_of

log = logging.getLogger("jevons.tokenizer")

CHECK_EVERY = 512
PROOF_TEXTS = 400
CACHE_BYTES = 8 << 20  # of messages encoded before: the next turn of a talk begins with all of its others
LONG_TEXTS = 6  # of the texts that prove it, joined: long enough to be cut
_CHECKED_CHARACTERS = 8_192  # longer ones are not checked: Hugging Face takes half a ms for a thousand

# Of what rules of splitting and normalising are made: words, numbers, scripts, marks, emoji, code.
_WORDS = """
the of to and Router prefill isn't we'll I'm they've 'S don't naïve façade Straße ŒUVRE İstanbul ﬁne ½ ² Ⅷ
1 12 123 1234 3.14 1,000,000 0x7f ١٢٣ 二〇二六 日本語 中文字符 한국어 ภาษาไทย हिन्दी עברית العربية ελληνικά русский
😀 👩‍👩‍👧 🇩🇪 def x(): => -> != === // /* */ {} [] <a> </a> <| |> <s> [INST] <0x0A> ## @@ __init__ a_b aB2c ~/.x $1 %s
. , ; : ! ? … - – — ( ) ' " ` ´ « » „ “ ” ¿ ¡ · • ° € £ ¥ §
"""
_MARKS = ("e\u0301", "a\u0308\u0323", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u0378", "\ue000", "C:\\y")
_GAPS = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x00",
    "\x1f",
    "\x7f",
    "\x85",
)
PIECES = (*_WORDS.split(), *_MARKS, *_GAPS)


def proof_texts(special: Sequence[str]) -> Iterator[str]:
    """Texts that reach the corners of a tokenizer's rules, the same each time.

    Args:
        special: tokens that are recognised where they are written out.
    """
    draw = random.Random(20261127)
    pieces = [*PIECES, *special]
    yield from ("", " ", "a", *special)
    for _ in range(PROOF_TEXTS):
        gap = draw.choice(("", " ", " ", " "))
        yield gap.join(draw.choice(pieces) for _ in range(draw.randint(1, 60)))
    for _ in range(PROOF_TEXTS // 8):
        yield "".join(chr(draw.choice((draw.randrange(32, 0x250), draw.randrange(0xD7FF)))) for _ in range(100))


class Fast:
    """A tokenizer that encodes like `hf`.

    Raises:
        ImportError: fastokens is not installed.
        ValueError: it cannot read this tokenizer, or encodes a text otherwise; says which.
    """

    def __init__(self, hf: tokenizers.Tokenizer) -> None:
        import fastokens

        self._hf = hf
        try:
            self._fast = fastokens.Tokenizer.from_json_str(hf.to_str())
        except Exception as error:  # a foreign parser: whatever it raises, it cannot read it
            raise ValueError(f"fastokens cannot read it: {error}") from error
        self._fast.enable_segment_cache(CACHE_BYTES)
        self._turn = 0
        self._parts: Parts | None = None
        special = [token.content for token in hf.get_added_tokens_decoder().values()]
        texts = list(proof_texts(special[:64]))
        self._prove(texts)
        parts = Parts(lambda part: self._whole(part, False))
        # A special token with words in it could be cut in two.
        if not any(len(parts_of("x" * STEP + token)) > 1 for token in special) and self._can_cut(parts, texts):
            self._parts = parts

    @property
    def cuts(self) -> bool:
        """Whether parts of long texts are kept: proven for this tokenizer."""
        return self._parts is not None

    def _prove(self, texts: Iterable[str]) -> None:
        for text in texts:
            for opening in (False, True):
                if self._whole(text, opening) != self._slow(text, opening).tobytes():
                    raise ValueError(f"fastokens encodes {text[:80]!r} otherwise than tokenizers")

    def _can_cut(self, parts: Parts, texts: list[str]) -> bool:
        """Whether long texts come to the same tokens in parts."""
        opening = self._whole("", True)
        if self._whole("a b", True) != opening + self._whole("a b", False):
            return False
        seam, size = " then router and cache go on ", -(-len(texts) // LONG_TEXTS)
        joined = [seam.join(texts[i : i + size]) for i in range(0, len(texts), size)]
        joined += [("word " * 300 + chr(code) + " a b ") * 3 for code in (0x301, 0x27, 0x2581, 0x41)]
        return all(parts.encode(text) == self._slow(text, False).tobytes() for text in joined)

    def encode(self, text: str, special: bool) -> array[int] | None:
        """The tokens of a text; None: it differs from Hugging Face's, this one is not to be used any more.

        Args:
            special: with the model's opening token, if it uses one.

        Raises:
            TypeError, ValueError: the text holds half of a surrogate pair.
        """
        ids = array("I", self._encode(text, special))
        self._turn += 1
        if self._turn % CHECK_EVERY == 0 and not self._is_right(text, special):
            log.error("fastokens encoded a prompt of %d characters otherwise: it is no longer used", len(text))
            return None
        return ids

    def _is_right(self, text: str, special: bool) -> bool:
        """Whether Hugging Face's says the same of a text; of one that is cut, of one part, each in its turn."""
        parts = parts_of(text) if self._parts is not None else [text]
        part = parts[self._turn // CHECK_EVERY % len(parts)]
        return len(part) > _CHECKED_CHARACTERS or self._whole(part, special) == self._slow(part, special).tobytes()

    def _encode(self, text: str, special: bool) -> bytes:
        if self._parts is None or len(text) <= STEP:
            return self._whole(text, special)
        ids = self._parts.encode(text)
        return self._whole("", True) + ids if special else ids

    def _whole(self, text: str, special: bool) -> bytes:
        """4 bytes a token: as numbers of Python's they would take longer to make than to find."""
        ids: bytes = self._fast.encode_batch_flat([text], add_special_tokens=special)[0]
        return ids

    def _slow(self, text: str, special: bool) -> array[int]:
        return array("I", self._hf.encode(text, add_special_tokens=special).ids)
