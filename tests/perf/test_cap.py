"""Chips that may draw less than they could."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from jevons.config.catalog import read_catalog
from jevons.perf.cap import capped, clock_share
from jevons.perf.roofline import Engine, Group, Work, iteration

CATALOG = read_catalog()
ENGINE = Engine(model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h100"], group=Group(tensor=8))


def test_all_of_the_power_is_all_of_the_clock() -> None:
    assert clock_share(1.0) == 1.0
    assert clock_share(2.0) == 1.0
    assert capped(ENGINE, 700.0) == ENGINE


def test_less_power_slows_prompts_down_and_not_decodes() -> None:
    slow = capped(ENGINE, 350.0)
    prompt = Work(prompt_tokens=8_192, prompt_pairs=8_192 * 4_096)
    decodes = Work(decodes=8, context_tokens=8 * 2_000)

    assert 1.2 < iteration(slow, prompt).seconds / iteration(ENGINE, prompt).seconds < 1.35
    assert iteration(slow, decodes).seconds == pytest.approx(iteration(ENGINE, decodes).seconds, rel=0.005)


def test_an_h100_held_to_half_its_power_slows_down_as_was_measured(shared: Path) -> None:
    with (shared / "data" / "ground_truth.csv").open() as file:
        rows = [
            row for row in csv.DictReader(file) if "splitwise" in row["source"] and row["metric"].startswith("prompt")
        ]
    times: dict[str, dict[tuple[str, str, str], float]] = {"h100-80gb": {}, "h100-80gb-pcap": {}}
    for row in rows:
        if row["system"] in times:
            what = (row["model"], row["input_len"], row["batch/concurrency"])
            times[row["system"]][what] = float(row["value"])
    ratios = [
        capped_ms / times["h100-80gb"][what]
        for what, capped_ms in times["h100-80gb-pcap"].items()
        if float(what[1]) * float(what[2]) >= 8_192  # arithmetic is all of it
    ]

    assert len(ratios) >= 3
    assert all(1 / clock_share(0.5) == pytest.approx(ratio, rel=0.06) for ratio in ratios)
