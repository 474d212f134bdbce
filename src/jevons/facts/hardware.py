"""What is known of hardware: each figure with where it comes from. What is not known is None, never a guess."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0, le=1e300)]  # TOML has infinity too, and what is made of it is no number


class Confidence(enum.StrEnum):
    """How a figure is known, surest first."""

    MEASURED = "measured"
    OFFICIAL = "official"  # the vendor says so
    PRELIMINARY = "preliminary"  # the vendor says so of what may still change
    DERIVED = "derived"  # arithmetic on others
    ESTIMATE = "estimate"  # of a third party
    RECALLED = "recalled"  # from a data sheet that nobody read again
    ASSUMED = "assumed"  # by us: nobody published it


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number about the world, in base units: bytes, bytes/s, FLOP/s, watts, seconds, dollars."""

    value: Positive
    source: str  # a name of the catalog's sources, or free text
    confidence: Confidence
    low: Positive | None = None
    high: Positive | None = None
    note: str = ""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    date: str


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has figures."""

    def figures(self) -> dict[str, Figure]:
        """Those that are known, by name."""
        return {name: f for name in self.__struct_fields__ if isinstance(f := getattr(self, name), Figure)}


class Chip(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One accelerator, or a CPU server. FLOP/s are dense unless the name says sparse; scale-up is one direction."""

    vendor: str
    kind: Literal["gpu", "lpu", "tpu", "npu", "cpu"]
    memory: str
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    fabric: str | None = None  # that joins it to others of its domain
    bf16_flops: Figure | None = None
    fp8_flops: Figure | None = None
    fp4_flops: Figure | None = None
    fp4_sparse_flops: Figure | None = None
    scale_up_bytes_per_s: Figure | None = None
    domain_size: Figure | None = None  # chips joined by the fabric at most
    scale_out_bytes_per_s: Figure | None = None  # over the network, one direction
    tdp_w: Figure | None = None
    all_in_w: Figure | None = None  # of IT: with its share of host and network; what a site draws is PUE times that
    price_usd: Figure | None = None
    own_usd_per_hour: Figure | None = None
    rent_usd_per_hour: Figure | None = None

    def flops(self, bits: int) -> Figure | None:
        """Dense FLOP/s on numbers of so many bits; of the next wider ones where it has no units for them."""
        rates = {4: self.fp4_flops, 8: self.fp8_flops, 16: self.bf16_flops}
        return next((rate for width, rate in rates.items() if width >= bits and rate is not None), None)


class Rack(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chips that are bought as one."""

    chip: str
    chips: Annotated[int, Meta(gt=0)]
    power_w: Figure | None = None
    price_usd: Figure | None = None


class Fabric(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What joins the chips of a domain, each at its own rate."""

    title: str
    topology: Literal["switch", "mesh", "torus"]
    dimensions: int = 0  # of a torus
    latency_s: Figure | None = None


class KvStore(Entry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where KV blocks lie beyond a device's memory."""

    title: str
    bytes_per_s: Figure | None = None  # for one chip, one direction
    latency_s: Figure | None = None
    size_bytes: Figure | None = None
