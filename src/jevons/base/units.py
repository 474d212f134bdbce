"""Values with units as people read them."""

from __future__ import annotations


def count(value: float) -> str:
    """1234567 → '1,234,567'."""
    return f"{value:,.0f}"


def milliseconds(seconds: float) -> str:
    """0.0123 → '12.3 ms'; three figures, so a fast and a slow value can stand in one column."""
    ms = seconds * 1000.0
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BELOW_ONE = ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def si(value: float, unit: str) -> str:
    """3.35e12, 'B/s' → '3.35 TB/s'; three figures, decimal prefixes."""
    for size, prefix in (*_PREFIXES, (1.0, ""), *_BELOW_ONE):
        if abs(value) >= size:
            return (
                f"{value / size:.3g} {prefix}{unit}" if value / size < 1000 else f"{value / size:,.0f} {prefix}{unit}"
            )
    return f"{value:.3g} {unit}"


def dollars(value: float) -> str:
    """7800000 → '$7,800,000', 1.17 → '$1.17'."""
    return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def short_dollars(value: float) -> str:
    """7800000 → '$7.80M', 1234 → '$1,234', 3.614 → '$3.61', 0.01234 → '$0.0123'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"${value / size:.3g}{letter}" if abs(value) < 1e15 else f"${value:.3g}"
    return f"${value:,.0f}" if abs(value) >= 100 else f"${value:.2f}" if abs(value) >= 1 else f"${value:.3g}"


def clock(seconds: float) -> str:
    """`13:05:00` since the beginning."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
