"""Names of things: distinct types for values that are plain bytes, strings or numbers underneath."""

from __future__ import annotations

from typing import NewType

BlockHash = NewType("BlockHash", bytes)  # 16 bytes; names a block and every block before it
WorkerId = NewType("WorkerId", str)
RequestId = NewType("RequestId", str)
BlockId = NewType("BlockId", int)  # a place in one pool, 0 to blocks - 1
