"""How much memory the index is given goes by the machine, or by its container."""

from __future__ import annotations

from pathlib import Path

from jevons.serve.memory import memory_bytes


def test_a_container_limit_counts_where_there_is_one(tmp_path: Path) -> None:
    whole, limit, unlimited = memory_bytes(()), tmp_path / "memory.max", tmp_path / "no limit"
    limit.write_text(f"{64 << 20}\n")
    unlimited.write_text("max\n")

    assert whole > 64 << 20
    assert memory_bytes((limit,)) == 64 << 20
    assert memory_bytes((unlimited, tmp_path / "missing")) == whole
