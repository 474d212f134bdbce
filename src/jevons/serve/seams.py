"""Long texts cut where every tokenizer cuts: the parts that were encoded before are not encoded again.

Prompts of a fleet begin alike: system prompts, documents, the talk so far. Between a letter and a space that another
letter follows no rule of splitting looks across, and no merge reaches, in tokenizers that split by words. Not all do
(SentencePiece merges whole texts), so who uses this proves it for his tokenizer first.

Cuts depend on what is before them alone: two texts that begin alike are cut alike, as far as they are alike.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

STEP = 1_024  # characters of a part, at least
MOST_CHARACTERS = 8 << 20  # of all parts kept: with their tokens 20 MB
_SEAM = re.compile(r"[A-Za-z](?= [A-Za-z])")


def parts_of(text: str) -> list[str]:
    """`text` in parts."""
    parts, start = [], 0
    while (seam := _SEAM.search(text, start + STEP)) is not None:
        parts.append(text[start : seam.end()])
        start = seam.end()
    parts.append(text[start:])
    return parts


class Parts:
    """Parts of texts and their tokens, those used last.

    Args:
        encode: gives the tokens of a part, 4 bytes each.
    """

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self._encode = encode
        self._known: OrderedDict[str, bytes] = OrderedDict()
        self._characters = 0
        self._lock = Lock()  # very long texts are encoded beside the event loop

    def encode(self, text: str) -> bytes:
        """The tokens of `text`. Its last part is not kept: the next text that begins alike goes on elsewhere."""
        *parts, last = parts_of(text)
        return b"".join([*[self._find(part) or self._keep(part) for part in parts], self._encode(last)])

    def _find(self, part: str) -> bytes | None:
        with self._lock:
            known = self._known.get(part)
            if known is not None:
                self._known.move_to_end(part)
            return known

    def _keep(self, part: str) -> bytes:
        ids = self._encode(part)
        with self._lock:
            if part not in self._known:
                self._known[part] = ids
                self._characters += len(part)
            while self._characters > MOST_CHARACTERS:
                old, _ = self._known.popitem(last=False)
                self._characters -= len(old)
        return ids
