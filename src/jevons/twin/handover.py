"""Kernels of a handover: when the KV of a prompt is on the engine that goes on, over lines that are shared."""

from __future__ import annotations

from jevons.base.compiled import FLOAT, INT, SMALL, Reals, Records, compiled
from jevons.base.hub import view
from jevons.kv.cache import match
from jevons.twin.sequences import engine_of, sequence_of, spell


@compiled
def handed_over_s(h: Records, slot: int, now_s: float) -> float:
    """When the KV of a prompt just computed is on the engine that goes on. Takes the lines until then.

    Layers are sent as they are computed, so that what is left after the prompt is the last one, if the line keeps up.
    Blocks that the other holds are not sent, as `policy.disagg` foresees.
    """
    s = sequence_of(h, slot)
    a, b = engine_of(h, s.worker), engine_of(h, s.decode_on)
    rate = min(a.near_bytes_per_s, b.near_bytes_per_s)
    if a.domain != b.domain:
        rate = min(a.far_bytes_per_s, b.far_bytes_per_s)
    names = view(h.scratch, h.scratch_n, INT)[: min(s.named, s.target // h.block)]
    spell(h, s, 0, len(names))
    held = match(h, b.pool, names, view(h.matched, h.matched_n, SMALL))
    size = a.kv_fixed_bytes + a.kv_token_bytes * (s.target - held * h.block)
    begins_s = max(s.began_s, a.sends_until_s, b.takes_until_s)
    ends_s = max(begins_s + size / rate, now_s + size / a.layers / rate) + a.link_s
    if a.domain != b.domain:
        ends_s = max(ends_s, _through(view(h.uplinks_out_s, h.uplinks_out_s_n, FLOAT), a, begins_s, size))
        ends_s = max(ends_s, _through(view(h.uplinks_in_s, h.uplinks_in_s_n, FLOAT), b, begins_s, size))
    a.sends_until_s = b.takes_until_s = ends_s
    return float(ends_s)


@compiled
def _through(until_s: Reals, e: Records, begins_s: float, size: float) -> float:
    """When so many bytes are through the line that all of an engine's domain share: one after another, at its rate."""
    if e.uplink < 0:
        return 0.0
    until_s[e.uplink] = max(until_s[e.uplink], begins_s) + size * e.uplink_byte_s
    return float(until_s[e.uplink])
