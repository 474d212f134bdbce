"""A fleet is made of a server's record, and its rehearsal is held to what was recorded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.pictures.validate import held_to
from jevons.cli.simulate import command
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import Scenario, Traffic, as_toml, read_scenario
from jevons.facts.trace import REQUESTS, STEPS, WORKERS, RecordedRow, RecordedStep, RecordedWorker
from jevons.perf.measured import Load, Prices
from jevons.twin.kernel import RESULT
from jevons.twin.record import read_record, rehearse, scenario_of, together
from jevons.twin.run import simulate

REAL = Prices(per_step_s=0.005, per_token_s=0.003, per_token_context_s=1e-6, per_decode_s=0.02)
CATALOG, CALIBRATION = read_catalog(), read_calibration()


def lines(*rows: msgspec.Struct) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def worker(id: str, **more: Any) -> RecordedWorker:
    fields = {"step_tokens": 128, "block_size": 16, "blocks": 200, "max_running": 8, **more}
    return RecordedWorker("kv", id, "m", "reference", "both", **fields)


def step(id: str, draw: random.Random) -> RecordedStep:
    tokens, decodes = draw.choice([0, 40, 128]), draw.randrange(1, 5)
    load = Load(1, tokens, tokens * draw.randrange(600), decodes)
    return RecordedStep(id, REAL.seconds(load) * draw.uniform(0.9, 1.1), tokens, int(load.token_context), decodes)


def write(folder: Path, workers: list[RecordedWorker], steps: int = 200, rows: list[RecordedRow] | None = None) -> Path:
    draw = random.Random(3)
    folder.mkdir()
    (folder / WORKERS).write_bytes(lines(*workers))
    (folder / STEPS).write_bytes(lines(*(step(w.id, draw) for w in workers for _ in range(steps))))
    (folder / REQUESTS).write_bytes(lines(*rows or []))
    return folder


def talks(count: int, turns: int) -> list[RecordedRow]:
    """Conversations, nothing measured yet."""
    rows = []
    for talk in range(count):
        for turn in range(turns):
            tokens = 150 + 40 * turn
            rows.append(
                RecordedRow(
                    input_length=tokens,
                    output_length=10,
                    timestamp=300.0 * talk + 2_000.0 * turn,
                    hash_ids=[1, 2, 3, *range(100 * talk + 10, 100 * talk + 10 + -(-(tokens + 10) // 16) - 3)],
                    request_id=f"{talk}.{turn}",
                    wait_for=[f"{talk}.{turn - 1}"] if turn else [],
                    delay=500.0 if turn else None,
                    block_size=16,
                    worker="?",
                    predicted_ttft_ms=0.0,
                    predicted_cached_tokens=0,
                    done_ms=0.0,
                )
            )
    return rows


def test_a_record_of_attached_engines_says_what_can_be_done_with_it(tmp_path: Path) -> None:
    attached = [msgspec.structs.replace(worker(f"host:{port}"), kind="openai", blocks=None) for port in (8001, 8002)]
    folder = write(tmp_path / "r", attached, steps=0, rows=talks(3, 2))

    with pytest.raises(
        ConfigError, match=r"attached engines report no steps, .*: jevons simulate --fleet 2xCHIP"
    ) as error:
        scenario_of(read_record(folder))

    told = str(error.value).partition(": jevons simulate ")[2].replace("CHIP", "h100").replace("NAME", "llama-3.1-8b")
    ended = CliRunner().invoke(command, [*told.split(), "--json"], catch_exceptions=False)
    assert msgspec.json.decode(ended.stdout)["requests"] == 6


def test_alike_workers_are_one_group_with_the_prices_their_steps_had(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [worker("w1"), worker("w0"), worker("small", blocks=50)])

    scenario, fits = scenario_of(read_record(folder))

    assert [(group.instances, group.names, group.blocks) for group in scenario.fleet] == [
        (2, ["w1", "w0"], 200),
        (1, ["small"], 50),
    ]
    prices = scenario.fleet[0].prices
    assert prices is not None
    assert prices.per_token_s == pytest.approx(REAL.per_token_s, rel=0.05)
    assert prices.per_decode_s == pytest.approx(REAL.per_decode_s, rel=0.05)
    assert fits[0].off_p90 < 0.12
    assert abs(fits[0].off_sum) < 0.01
    assert scenario.fleet[0].engine == "jevons"


def test_several_records_of_one_fleet_are_fitted_together(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, [worker("w0"), worker("w1")], steps) for name, steps in (("a", 60), ("b", 90)))

    scenario, fits = scenario_of(together([read_record(one), read_record(two)]))

    assert fits[0].steps == 300
    assert scenario.title == "As recorded in a"
    other = write(tmp_path / "c", [worker("w0"), worker("w2")])
    with pytest.raises(ConfigError, match="same workers"):
        together([read_record(one), read_record(other)])


def test_what_is_written_reads_as_the_same_scenario(tmp_path: Path) -> None:
    scenario, _ = scenario_of(read_record(write(tmp_path / "r", [worker("w0")])))
    file = tmp_path / "r" / "fleet.toml"

    file.write_text(as_toml(scenario))

    beside = Traffic(trace=str(tmp_path / "r" / REQUESTS))
    assert read_scenario(file) == msgspec.structs.replace(scenario, traffic=beside)


def test_a_worker_that_did_not_tell_how_many_it_runs_at_once_runs_as_many_as_others_do(tmp_path: Path) -> None:
    scenario, _ = scenario_of(read_record(write(tmp_path / "r", [worker("w0", max_running=None)])))

    assert scenario.fleet[0].max_running == 256
    assert "max_running" not in as_toml(scenario)


def lived(scenario: Scenario, folder: Path, rows: list[RecordedRow]) -> list[RecordedRow]:
    """The rows as if the twin had been a server."""
    (folder / REQUESTS).write_bytes(lines(*rows))
    pieces: list[Any] = []
    traffic = Traffic(trace=str(folder / REQUESTS))
    replaced = msgspec.structs.replace(scenario, traffic=traffic)
    simulate(replaced, CATALOG, CALIBRATION, on_results=lambda r: pieces.append(r.copy()))
    results = np.concatenate(pieces)
    found = results[np.argsort(results["request"])]
    assert found.dtype == RESULT
    names = [name for group in scenario.fleet for name in group.names]
    return [
        msgspec.structs.replace(
            row,
            worker=names[r["worker"]],
            ttft_ms=1e3 * float(r["first_s"] - r["at_s"]),
            done_ms=1e3 * float(r["done_s"] - r["at_s"]),
            cached_tokens=int(r["cached"]),
        )
        for row, r in zip(rows, found, strict=True)
    ]


def test_a_rehearsal_of_what_the_twin_lived_through_is_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [worker("w0"), worker("w1")])
    scenario, _ = scenario_of(read_record(folder))
    rows = lived(scenario, folder, talks(6, 3))
    (folder / REQUESTS).write_bytes(lines(*rows))

    found = rehearse(folder, scenario, CATALOG, CALIBRATION)

    assert (found.requests, found.placed_alike, found.cached_alike) == (18, 18, 18)
    assert [both.off for both in found.times.values()] == pytest.approx([0.0] * 4, abs=1e-6)
    assert found.first_apart is None
    assert {row.worker for row in rows} == {"w0", "w1"}


def test_what_was_placed_elsewhere_and_took_longer_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [worker("w0"), worker("w1")])
    scenario, _ = scenario_of(read_record(folder))
    rows = lived(scenario, folder, talks(6, 3))
    other = {"w0": "w1", "w1": "w0"}
    rows[4] = msgspec.structs.replace(rows[4], worker=other[rows[4].worker])
    rows = [msgspec.structs.replace(row, ttft_ms=2 * (row.ttft_ms or 0.0)) for row in rows]
    (folder / REQUESTS).write_bytes(lines(*rows))

    found = rehearse(folder, scenario, CATALOG, CALIBRATION)

    assert found.placed_alike == 17
    assert found.first_apart == "1.1"
    assert found.ttft_p50_s is not None
    assert found.ttft_p50_s.off == pytest.approx(-0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "times"),
    [({"output_length": 1}, ["TTFT p50", "TTFT p90"]), ({"ttft_ms": None}, [])],
)
def test_times_that_no_request_tells_are_left_out(tmp_path: Path, change: dict[str, Any], times: list[str]) -> None:
    folder = write(tmp_path / "r", [worker("w0"), worker("w1")])
    scenario, _ = scenario_of(read_record(folder))
    rows = [msgspec.structs.replace(row, **change) for row in lived(scenario, folder, talks(6, 3))]
    (folder / REQUESTS).write_bytes(lines(*rows))

    found = rehearse(folder, scenario, CATALOG, CALIBRATION)

    assert (found.requests, list(found.times)) == (18, times)
    assert len(held_to(found)) == bool(times)


@pytest.mark.parametrize(
    ("workers", "steps", "says"),
    [
        ([], 0, "at least one worker"),
        ([worker("w0")], 20, "at least 100 steps, got 20"),
        ([worker("w0", blocks=None)], 100, "told its blocks"),
    ],
)
def test_a_record_that_says_too_little_is_refused(
    tmp_path: Path, workers: list[RecordedWorker], steps: int, says: str
) -> None:
    folder = write(tmp_path / "r", workers, steps)

    with pytest.raises(ConfigError, match=says):
        scenario_of(read_record(folder))


def test_a_folder_that_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_record(tmp_path)
    folder = write(tmp_path / "r", [worker("w0")])
    (folder / STEPS).write_text('{"no": "step"}\n')
    with pytest.raises(ConfigError, match="not of `jevons serve --record`"):
        read_record(folder)


def test_a_fleet_that_names_no_workers_cannot_be_held_to_a_record(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [worker("w0")])
    scenario, _ = scenario_of(read_record(folder))
    nameless = msgspec.structs.replace(scenario, fleet=[msgspec.structs.replace(scenario.fleet[0], names=[])])

    with pytest.raises(ConfigError, match=r"fleet\[0\]\.names"):
        rehearse(folder, nameless, CATALOG, CALIBRATION)
