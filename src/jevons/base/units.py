"""Values with units as people read them."""

from __future__ import annotations


def count(value: float) -> str:
    """1234567 → '1,234,567'."""
    return f"{value:,.0f}"


def milliseconds(seconds: float) -> str:
    """0.0123 → '12.3 ms'; three figures, so a fast and a slow value can stand in one column."""
    ms = seconds * 1000.0
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"
