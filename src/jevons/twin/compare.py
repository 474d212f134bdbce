"""Two rehearsals of the same requests: where their decisions part, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jevons.base.compiled import Records
from jevons.base.errors import ConfigError
from jevons.twin.kernel import RESULT


class Decision(msgspec.Struct, frozen=True):
    """One request in one rehearsal."""

    worker: int
    decode_on: int  # who goes on after the first token; -1: the same
    predicted_cached: int  # tokens
    cached: int
    predicted_s: float  # to the first token
    ttft_s: float


class Part(msgspec.Struct, frozen=True):
    """Some of the requests: the means of both."""

    requests: int
    ttft_s: tuple[float, float]
    tpot_s: tuple[float, float]
    reuse: tuple[float, float]  # share of prompt tokens
    prediction_error_s: tuple[float, float]  # mean distance of predicted and real TTFT


class Comparison(msgspec.Struct, frozen=True):
    """`first` is the first request, in order of arrival, that was placed differently; None if none was."""

    placed_alike: Part
    placed_differently: Part
    first: int | None
    first_at_s: float
    first_decisions: tuple[Decision, Decision] | None


def read_results(folder: Path) -> Records:
    """What `jevons simulate --out FOLDER` wrote, in order of their numbers.

    Raises:
        ConfigError: nothing is there.
    """
    try:
        results = np.load(folder / "requests.npy")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"compare {folder}: no requests.npy of `jevons simulate --out`: {error}") from error
    if results.dtype != RESULT:
        raise ConfigError(
            f"compare {folder}: no requests.npy of `jevons simulate --out`: {results.dtype}; rehearse again"
        )
    return results[np.argsort(results["request"], kind="stable")]


def compare(a: Records, b: Records) -> Comparison:
    """Of the requests that both have.

    Raises:
        ConfigError: they are not the same requests.
    """
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    if count == 0 or not all(np.array_equal(a[name], b[name]) for name in ("request", "prompt", "output")):
        raise ConfigError("compare: the two are not of the same requests; give both the same traffic and seed")
    differ = (a["worker"] != b["worker"]) | (a["decode_on"] != b["decode_on"])
    # By time: in a trace whose requests follow others, numbers are those of its lines.
    first = int(np.flatnonzero(differ)[a["at_s"][differ].argmin()]) if differ.any() else None
    decisions = None if first is None else (_decision(a[first]), _decision(b[first]))
    number, at_s = (None, 0.0) if first is None else (int(a[first]["request"]), float(a[first]["at_s"]))
    return Comparison(_part(a[~differ], b[~differ]), _part(a[differ], b[differ]), number, at_s, decisions)


def _decision(row: Any) -> Decision:
    return Decision(
        worker=int(row["worker"]),
        decode_on=int(row["decode_on"]),
        predicted_cached=int(row["predicted_cached"]),
        cached=int(row["cached"]),
        predicted_s=float(row["predicted_s"]),
        ttft_s=float(row["first_s"] - row["at_s"]),
    )


def _part(a: Records, b: Records) -> Part:
    if not len(a):
        nothing = (0.0, 0.0)
        return Part(0, nothing, nothing, nothing, nothing)
    both, many = (a, b), a["output"] > 1  # of one token there is no time between
    ttft = [rows["first_s"] - rows["at_s"] for rows in both]
    tpot = [((rows["done_s"] - rows["first_s"]) / np.maximum(rows["output"] - 1, 1))[many] for rows in both]
    error = [np.abs(rows["predicted_s"] - t) for rows, t in zip(both, ttft, strict=True)]
    reuse = [rows["cached"].sum() / rows["prompt"].sum() for rows in both]
    return Part(len(a), _pair(ttft), _pair(tpot), (float(reuse[0]), float(reuse[1])), _pair(error))


def _pair(values: list[Any]) -> tuple[float, float]:
    return (float(values[0].mean()), float(values[1].mean())) if len(values[0]) else (0.0, 0.0)
