"""Shares of data sheets that measured points tell: factors of groups, held towards 1 the more, the narrower the group.

Minimised over log factors t of all groups and shares: the sum of robust squares of (log predicted − log measured)
over what a measurement of that kind scatters, plus (t / how far that share of that group may lie from its wider
group)². Steps are Gauss–Newton's with derivatives by differences; each case only depends on the shares of its own
groups, so a case is predicted once for each share and not for each unknown.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median

import msgspec
import numpy as np
from numpy.typing import NDArray

from jevons.base.errors import ConfigError
from jevons.base.stats import percentile
from jevons.config.catalog import Catalog
from jevons.config.points import Point
from jevons.perf.calibration import FIELDS, KINDS, Calibration, Effect, Error, Trust, scaled, trust_in
from jevons.perf.roofline import GUESS_SHARES, Shares
from jevons.twin.names import Unpredicted
from jevons.twin.points import Case, case_of, is_check
from jevons.twin.pool import side_by_side
from jevons.twin.predict import Predictor

# GUESS: what a measurement scatters about a right model, in logs, by what it measures: versions, warm-ups, what rows do
# not say. Free layouts and production know least.
_SCATTER = {
    "tpot": 0.1,
    "step": 0.1,
    "rate": 0.12,
    "best rate": 0.25,
    "ttft": 0.35,
    "prefill rate": 0.25,
    "decode rate": 0.25,
}
_TAIL = 4.0  # of Student's distribution: rows that say too little count less
# How far shares of a group may lie from those of the wider ones, in logs: efficiencies, and times.
_REACH = {
    "all": (0.35, 0.7),
    "weights": (0.2, 0.3),
    "chip": (0.15, 0.3),
    "engine": (0.25, 0.6),
    "family": (0.2, 0.6),
    "split": (0.2, 0.5),
}
_ONLY = {"tokens_per_step": ("split",), "request_s": ("all", "engine", "split"), "wait": ("all", "engine", "split")}
_TIMES = frozenset({"layer_s", "link_s", "host_s", "sequence_s", "request_s"})
_DIFFERENCE = 0.05  # of a log share
_STEPS = 8
_SLOPES_AT = (0, 1, 2, 4, 6)  # between, the old slopes point well enough
_REQUESTS = 300  # simulated of a loop: within 6 % of many for nine loops in ten
_ENOUGH = 25  # measurements of a chip for it to be left out in turn
_KIND_OF = {"step": "tpot", "best rate": "rate", "prefill rate": "rate", "decode rate": "rate"}

Floats = NDArray[np.float64]


class Sample(msgspec.Struct, frozen=True):
    """One measurement."""

    case: Case
    measured: float


def samples_of(points: Iterable[Point], catalog: Catalog) -> list[Sample]:
    """Of those that can be predicted and that differ: some rows are one measurement under two names.

    Costs and energies are not: they are rates over prices and powers that their publishers knew, and we may not.
    """
    found: dict[bytes, Sample] = {}
    for point in points:
        try:
            case = case_of(point, catalog)
        except Unpredicted:
            continue
        if case.derived:
            continue
        found.setdefault(msgspec.msgpack.encode((case, point.value)), Sample(case, point.value))
    return list(found.values())


def fit(samples: Sequence[Sample], catalog: Catalog, steps: int = _STEPS) -> dict[str, Effect]:
    """Factors of all groups that the samples belong to, none of none. About a second for each five samples and step."""
    return _Fit(samples, catalog).run(steps) if samples else {}


def _reach(group: str, field: str) -> float:
    """How far that share may lie from the wider groups'; 0: not at all."""
    kind = "all" if group == "all" else group.partition("=")[0]
    kind = "family" if " family=" in group else "split" if group.endswith(" split") else kind
    if field in _ONLY and kind not in _ONLY[field]:
        return 0.0
    return _REACH[kind][field in _TIMES]


class _Fit:
    """Unknowns are the log factors, groups × fields; `rows` of a group are the samples that belong to it."""

    def __init__(self, samples: Sequence[Sample], catalog: Catalog) -> None:
        self._samples = samples
        self._catalog = catalog
        self._rows = Counter(group for sample in samples for group in sample.case.key.groups())
        self._groups = {group: i for i, group in enumerate(self._rows)}
        self._theta: Floats = np.zeros((len(self._groups), len(FIELDS)))
        self._reach: Floats = np.array([[_reach(group, field) for field in FIELDS] for group in self._groups])
        self._scatter: Floats = np.array([_SCATTER[sample.case.what] for sample in samples])
        self._measured: Floats = np.log([sample.measured for sample in samples])

    def run(self, steps: int) -> dict[str, Effect]:
        slopes: Floats = np.zeros((0, 0))
        error = self._errors(self._theta)
        for step in range(steps):
            if step in _SLOPES_AT:
                slopes = self._slopes(error)
            move, scale = self._move(error, slopes), 1.0
            before = self._loss(error, self._theta)
            while scale > 0.1:  # halved until it helps
                theta = self._theta + scale * move
                after = self._errors(theta)
                if self._loss(after, theta) < before:
                    self._theta, error = theta, after
                    break
                scale /= 2
        return self.effects()

    def effects(self) -> dict[str, Effect]:
        found = {}
        for group, i in self._groups.items():
            factors = {field: round(math.exp(t), 4) for field, t in zip(FIELDS, self._theta[i], strict=True)}
            found[group] = Effect(rows=self._rows[group], **{k: v for k, v in factors.items() if v != 1.0})
        return found

    def _mine(self, sample: Sample) -> list[int]:
        return [self._groups[group] for group in sample.case.key.groups()]

    def _shares(self, sample: Sample, theta: Floats) -> Shares:
        return scaled(_times(np.exp(theta[self._mine(sample)].sum(axis=0))), [])

    def _errors(self, theta: Floats) -> Floats:
        """Log of predicted over measured."""
        predictor = Predictor(self._catalog, _REQUESTS)
        found = [predictor.value(sample.case, self._shares(sample, theta)) for sample in self._samples]
        errors: Floats = np.log(found) - self._measured
        return errors

    def _slopes(self, error: Floats) -> Floats:
        """Of each error by each log share of its own, samples × fields."""
        slopes = np.zeros((len(self._samples), len(FIELDS)))
        predictor = Predictor(self._catalog, _REQUESTS)
        for i, sample in enumerate(self._samples):
            shares = self._shares(sample, self._theta)
            for j, field in enumerate(FIELDS):
                moved = scaled(_with(shares, field, math.exp(_DIFFERENCE)), [])
                if moved != shares and _bears(sample.case, field, self._catalog):
                    value = math.log(predictor.value(sample.case, moved)) - self._measured[i]
                    slopes[i, j] = (value - error[i]) / _DIFFERENCE
        return slopes

    def _loss(self, error: Floats, theta: Floats) -> float:
        tails = (_TAIL + 1) / 2 * np.log1p((error / self._scatter) ** 2 / _TAIL)
        held = np.divide(theta, self._reach, out=np.zeros_like(theta), where=self._reach > 0)
        return float(tails.sum() + (held**2).sum() / 2)

    def _move(self, error: Floats, slopes: Floats) -> Floats:
        """Gauss–Newton's step with Student's weights."""
        size = self._theta.size
        matrix: Floats = np.zeros((len(self._samples), size))
        for i, sample in enumerate(self._samples):
            for group in self._mine(sample):
                matrix[i, group * len(FIELDS) : (group + 1) * len(FIELDS)] = slopes[i]
        weight = (_TAIL + 1) / (_TAIL + (error / self._scatter) ** 2) / self._scatter**2
        free = self._reach.ravel() > 0
        matrix = matrix[:, free]
        held = 1 / self._reach.ravel()[free] ** 2
        normal = matrix.T @ (weight[:, None] * matrix) + np.diag(held)
        right = -(matrix.T @ (weight * error)) - held * self._theta.ravel()[free]
        move: Floats = np.zeros(size)
        move[free] = np.clip(np.linalg.solve(normal, right), -0.7, 0.7)
        return move.reshape(self._theta.shape)


def _times(factors: Floats) -> Shares:
    """The guess times these."""
    return Shares(**{field: getattr(GUESS_SHARES, field) * float(f) for field, f in zip(FIELDS, factors, strict=True)})


def _with(shares: Shares, field: str, factor: float) -> Shares:
    return msgspec.structs.replace(shares, **{field: getattr(shares, field) * factor})


def _bears(case: Case, field: str, catalog: Catalog) -> bool:
    """Whether a share can matter to a case: what it is not asked need not be predicted."""
    if field in ("imbalance", "expert_bandwidth", "expert_compute"):
        return catalog.models[case.model].moe is not None
    if field in ("link", "link_s"):
        return case.layout is None or case.layout.group.tensor > 1
    if field in ("request_s", "wait"):
        return case.what == "ttft"
    return True


def calibrate(
    points: Sequence[Point],
    catalog: Catalog,
    stamp: tuple[str, str],
    told: Callable[[str], None],
    processes: int = 1,
) -> Calibration:
    """Factors from the points that are not held out, and the errors to expect from those that are.

    Args:
        stamp: date and command, for the record.
        told: is told of progress.
        processes: that fit side by side: all points, and those without each chip.

    Raises:
        ConfigError: there is nothing to fit.
    """
    fitted = samples_of((point for point in points if not is_check(point)), catalog)
    checks = samples_of((point for point in points if is_check(point)), catalog)
    if not fitted:
        raise ConfigError(
            f"points: must have one that is fitted; of {len(points)}, {len(checks)} are held out, others cannot be "
            f"predicted, for the reasons that `jevons validate` tells"
        )
    told(f"fitting {len(fitted)} measurements, {len(checks)} held out")
    chips = _chips(fitted)
    without = [[sample for sample in fitted if sample.case.key.chip != chip] for chip in chips]
    effects, *others = _fits([fitted, *without], catalog, processes)
    found = Calibration(
        title=f"{len(fitted)} public end-to-end measurements",
        date=stamp[0],
        command=stamp[1],
        rule="rows of which jevons.twin.points.is_check is false",
        effects=effects,
        measured=sorted({sample.case.key.measured_as for sample in fitted}),
        errors={},
    )
    seen = [sample for sample in checks if trust_in(found, sample.case.key) is Trust.MEASURED]
    off = {Trust.MEASURED: _off(seen, effects, catalog), Trust.TRANSFERRED: Off(), Trust.PROJECTED: Off()}
    for chip, rest in zip(chips, others, strict=True):
        theirs = [sample for sample in (*fitted, *checks) if sample.case.key.chip == chip]
        alone = _off(theirs, rest, catalog)
        told(f"without {chip}: " + ", ".join(_told(kind, values) for kind, values in alone.items()))
        _join(off[Trust.TRANSFERRED], alone)
        _join(off[Trust.PROJECTED], _off([_stripped(sample) for sample in theirs], rest, catalog))
    return msgspec.structs.replace(found, errors=_expected(off))


def _fits(all_samples: Sequence[list[Sample]], catalog: Catalog, processes: int) -> list[dict[str, Effect]]:
    fitted = functools.partial(fit, catalog=catalog)
    if processes == 1:
        return list(map(fitted, all_samples))
    with side_by_side(processes) as pool:
        return list(pool.map(fitted, all_samples))


Off = dict[str, list[float]]  # errors as shares of what was measured, by what it is


def _chips(samples: Sequence[Sample]) -> list[str]:
    """Those with enough measurements to tell."""
    counts = Counter(sample.case.key.chip for sample in samples)
    return sorted(chip for chip, count in counts.items() if count >= _ENOUGH)


def _stripped(sample: Sample) -> Sample:
    """The same, as if nobody had measured its engine."""
    key = msgspec.structs.replace(sample.case.key, engine="")
    return msgspec.structs.replace(sample, case=msgspec.structs.replace(sample.case, key=key))


def _off(samples: Iterable[Sample], effects: dict[str, Effect], catalog: Catalog) -> Off:
    predictor, off = Predictor(catalog), Off()
    for sample in samples:
        case = sample.case
        kind = case.what if case.what in KINDS else _KIND_OF.get(case.what)
        if kind is not None:
            groups = [effects[group] for group in case.key.groups() if group in effects]
            value = predictor.value(case, scaled(GUESS_SHARES, groups))
            off.setdefault(kind, []).append(abs(value / sample.measured - 1))
    return off


def _told(kind: str, values: list[float]) -> str:
    return f"{kind} of {len(values)} off by {mean(values):.1%}, median {median(values):.1%}"


def _join(into: Off, more: Off) -> None:
    for kind, values in more.items():
        into.setdefault(kind, []).extend(values)


def _expected(off: dict[Trust, Off]) -> dict[str, Error]:
    """By trust and kind; what is known less well is never promised to be nearer."""
    found: dict[str, Error] = {}
    for kind in KINDS:
        middle, high = 0.0, 0.0
        for trust, kinds in off.items():
            values = kinds.get(kind)
            if values:
                middle, high = max(middle, median(values)), max(high, percentile(values, 0.9) or 0.0)
                found[f"{trust} {kind}"] = Error(rows=len(values), median=round(middle, 4), p90=round(high, 4))
    return found
