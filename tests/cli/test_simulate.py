"""`jevons simulate`: a report to read, JSON and nothing else where asked, one line for what is wrong."""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from jevons.base import compiled
from jevons.base.errors import ConfigError
from jevons.cli import main, scenarios
from jevons.config.calibration import as_toml, read_calibration
from jevons.serve.http import Door
from jevons.twin.kernel import run
from jevons.twin.watch import Watched

H200S = ("--fleet", "2x4xh200", "--model", "llama-3.1-70b", "--traffic", "chat", "--requests", "20")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Jevons:
    """`jevons simulate …`, in this process: compiled kernels are read once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *args: str) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["jevons", "simulate", *args])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return Ended(code, *self._capsys.readouterr())


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Jevons:
    return Jevons(monkeypatch, capsys)


def test_json_is_one_object_with_what_came_of_it_and_what_it_took(simulate: Jevons) -> None:
    ended = simulate("mocker", "--requests", "300", "--json")

    report = json.loads(ended.out)
    assert ended.code == 0
    assert (report["requests"], report["instances"], report["chips"]) == (300, 8, 8)
    assert report["wall_s"] > 0
    assert report["cpu_s"] > 0
    assert report["rss_bytes"] > 10_000_000
    for name in ("ttft_s", "tpot_s", "itl_s", "queue_s"):
        assert set(report[name]) == {"mean", "p50", "p90", "p99"}
    assert 0 < report["tpot_s"]["p50"] < report["ttft_s"]["p50"] < 1
    assert report["goodput_per_s"] > 0
    assert 0 < report["reuse_fraction"]["hbm"] < 1
    (trust,) = report["trust"]
    assert (trust["trust"], trust["tpot_p90_error"]) == ("given", None)


def test_a_report_is_read_and_says_how_far_to_trust_it(simulate: Jevons) -> None:
    ended = simulate(*H200S)

    assert ended.code == 0
    for words in ("TTFT", "TPOT", "p99", "20 requests on 2 instances of 8 chips", "reused", "trust: h200: "):
        assert words in ended.out


def test_a_chip_whose_name_has_an_x_can_be_given(simulate: Jevons) -> None:
    one = simulate("--fleet", "2xmi355x", *H200S[2:], "--json")
    two = simulate("--fleet", "2x2xmi355x", *H200S[2:], "--json")

    assert [json.loads(ended.out)["chips"] for ended in (one, two)] == [2, 4]


def test_options_go_before_the_scenario(simulate: Jevons) -> None:
    def report(*args: str) -> Any:
        return json.loads(simulate("mocker", "--requests", "200", "--json", *args).out)

    plain, hurried, other = report(), report("--rate", "20"), report("--seed", "9")

    assert hurried["simulated_s"] < plain["simulated_s"] / 3
    assert other["ttft_s"] != plain["ttft_s"]
    assert report("--router", "random")["reuse_fraction"]["hbm"] < plain["reuse_fraction"]["hbm"]
    assert report("--exact")["output_tokens"] == plain["output_tokens"]
    assert report("--traffic", "documents")["input_tokens"] > 2 * plain["input_tokens"]


def test_rate_is_how_much_faster_a_trace_comes(simulate: Jevons, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {}, "input_length": 900, "output_length": 5, "hash_ids": [1, {}]}}\n'
    trace.write_text("".join(line.format(1_000 * i, i) for i in range(100)))

    plain, hurried = (
        json.loads(simulate("mocker", "--trace", str(trace), "--json", *more).out) for more in ((), ("--rate", "4"))
    )

    assert plain["simulated_s"] == pytest.approx(99, abs=1)
    assert hurried["simulated_s"] == pytest.approx(99 / 4, abs=1)


def test_out_has_the_report_and_each_request(simulate: Jevons, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results"

    ended = simulate("mocker", "--requests", "50", "--json", "--out", str(out))

    requests = np.load(out / "requests.npy")
    assert ended.code == 0
    assert json.loads((out / "report.json").read_text()) == json.loads(ended.out)
    assert sorted(requests["request"]) == list(range(50))
    assert (requests["first_s"] <= requests["done_s"]).all()


def test_the_first_time_says_why_it_takes_long(
    simulate: Jevons, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenarios, "is_compiled", lambda kernel: False)
    ended = simulate("mocker", "--requests", "5", "--json")

    assert ended.err == "Compiling the kernels, once for this version: about a minute ...\n"
    assert json.loads(ended.out)["requests"] == 5
    assert compiled.is_compiled(run)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give a scenario, or --fleet, --model and --trace or --traffic"),
        (("nowhere",), "scenario 'nowhere': neither a file nor one of day, day-fixed, mi455x, mixed, mocker"),
        (("mocker", "--router", "fastest"), "router: must be one of kv, round_robin, least_loaded, random"),
        (("mocker", "--traffic", "gossip"), "traffic.kind: must be one of chat, rag, code, agents, documents, video"),
        (("mocker", "--trace", "t.jsonl", "--traffic", "chat"), "--trace and --traffic: give one of them"),
        (("mocker", "--trace", "/nowhere.jsonl"), "trace /nowhere.jsonl: cannot be read: No such file"),
        (("mocker", "--requests", "0"), "traffic.requests: must be int >= 1, got 0"),
        (("mocker", "--rate", "0"), "traffic.rate: must be float > 0.0, got 0.0"),
        (("mocker", "--seed", "-1"), "seed: must be int >= 0, got -1"),
        (("mocker", "--catalog", "/nowhere.toml"), "catalog /nowhere.toml: cannot be read"),
        (("--fleet", "8xh900", *H200S[2:]), "fleet[0].chip: 'h900' is not in the catalog; `jevons fleet list`"),
        (("--fleet", "8xh200", "--traffic", "chat"), "fleet[0]: must have a chip and the scenario a model"),
        (("--fleet", "8xh200", "--model", "gpt-9", "--traffic", "chat"), "model: 'gpt-9' is not in the catalog"),
        (("--fleet", "1xh100", *H200S[2:]), "fleet[0]: 1 × h100 hold 80 GB, llama-3.1-70b needs 141 GB"),
        (("vr-nvl72", "--model", "gpt-9"), "model: 'gpt-9' is not in the catalog"),
        *((("--fleet", text, *H200S[2:]), "--fleet: must be INSTANCESxCHIP") for text in ("h200", "8x", "", "²xh200")),
        *((("--fleet", text, *H200S[2:]), ": must be int >= 1, got 0") for text in ("0xh200", "8x0xh200")),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(simulate: Jevons, args: tuple[str, ...], says: str) -> None:
    ended = simulate(*args)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("jevons: ")
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_a_scenario_of_prompts_alone_is_refused(simulate: Jevons, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    group = '[[fleet]]\nchip = "h200"\ninstances = 2\ntensor = 4\nrole = "prefill"\n'
    file.write_text(f'model = "llama-3.1-70b"\n[traffic]\nkind = "chat"\nrequests = 5\n{group}')

    ended = simulate(str(file))

    assert ended.code == 2
    assert f"scenario {file}: fleet: prefill instances need others to go on after the first token" in ended.err


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(simulate: Jevons, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    ended = simulate("mocker", "--out", str(tmp_path / "file" / "results"))

    assert ended.code == 2
    assert "results cannot be made: Not a directory" in ended.err


def test_a_calibration_of_ones_own_tells_how_long_steps_take(simulate: Jevons, tmp_path: Path) -> None:
    own = read_calibration()
    effects = {name: msgspec.structs.replace(each, bandwidth=each.bandwidth / 2) for name, each in own.effects.items()}
    mine = tmp_path / "mine.toml"
    mine.write_text(as_toml(msgspec.structs.replace(own, effects=effects)))

    shipped, slower = (json.loads(simulate(*H200S, *more, "--json").out) for more in ((), ("--calibration", str(mine))))

    assert slower["tpot_s"]["p50"] > 1.2 * shipped["tpot_s"]["p50"]


def test_a_trace_takes_the_place_of_what_a_scenario_makes_up_and_the_other_way_round(
    simulate: Jevons, tmp_path: Path
) -> None:
    trace, own = tmp_path / "trace.jsonl", tmp_path / "own.toml"
    trace.write_text('{"timestamp": 0, "input_length": 800, "output_length": 2}\n' * 3)
    steps = "polynomial = { prompt_ms = [16.5, 0.015, 0.0], decode_ms = [5.7, 54.0, -25.7] }"
    own.write_text(f'[traffic]\ntrace = "trace.jsonl"\nspeed = 2.0\n[[fleet]]\ninstances = 2\n{steps}\n')

    recorded = json.loads(simulate("reuse-chat", "--trace", str(trace), "--json").out)  # whose sessions have a rate
    made_up = json.loads(simulate(str(own), "--traffic", "rag", "--requests", "20", "--json").out)

    assert (recorded["requests"], made_up["requests"]) == (3, 20)


def test_results_that_cannot_be_written_are_one_line(simulate: Jevons, tmp_path: Path) -> None:
    (tmp_path / "requests.npy").mkdir()

    ended = simulate("mocker", "--requests", "20", "--out", str(tmp_path))

    assert ended.code == 2
    assert f"--out: {tmp_path} cannot be written: Is a directory" in ended.err


def test_a_report_with_pictures_is_one_file(simulate: Jevons, tmp_path: Path) -> None:
    file = tmp_path / "report.html"

    ended = simulate(*H200S, "--html", str(file))

    text = file.read_text()
    assert ended.code == 0
    for words in ("How long requests took", "The fleet over time", "Where prompt tokens came from", "SLO: TTFT 2 s"):
        assert words in text
    assert "How far to trust it: h200: " in text


def test_pictures_that_cannot_be_had_are_an_error_before_anything_runs(
    simulate: Jevons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = simulate(*H200S, "--html", str(tmp_path / "none" / "report.html"))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    unplotted = simulate(*H200S, "--html", str(tmp_path / "report.html"))

    assert (nowhere.code, unplotted.code) == (2, 2)
    assert "there is no folder" in nowhere.err
    assert unplotted.err.strip() == (
        "jevons: pictures need Plotly, which is not installed: pip install 'jevons[charts]'"
    )


def test_the_same_as_an_image_is_drawn_by_a_browser(simulate: Jevons, tmp_path: Path) -> None:
    from jevons.cli.pictures.png import find_browser

    try:
        find_browser()
    except ConfigError as error:
        pytest.skip(str(error))

    ended = simulate(*H200S, "--png", str(tmp_path / "report.png"))

    assert ended.code == 0
    width, height = struct.unpack(">II", (tmp_path / "report.png").read_bytes()[16:24])
    assert width == 1800
    assert height > 2500


def test_without_a_browser_an_image_is_an_error_that_says_so(
    simulate: Jevons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chromium = pytest.importorskip("choreographer.browsers.chromium").Chromium
    monkeypatch.setattr(chromium, "find_browser", lambda **_: None)

    ended = simulate(*H200S, "--png", str(tmp_path / "report.png"))

    assert ended.code == 2
    assert "needs Chrome or Chromium and none was found" in ended.err


def test_a_ctrl_c_while_a_page_waits_for_kernels_is_heard(simulate: Jevons, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, heard = signal.getsignal(signal.SIGINT), []

    def compiles(*_: object) -> Iterator[float]:
        heard.append(signal.getsignal(signal.SIGINT) is usual)  # no loop has it, which would wait for a turn
        raise ConfigError("stopped")
        yield 0.0

    monkeypatch.setattr(Watched, "going", compiles)
    simulate(*H200S, "--watch")

    assert heard == [True]


def test_a_page_does_not_listen_before_what_rehearses_is_compiled(
    simulate: Jevons, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, going = [], Watched.going

    def rehearsed(watched: Watched, pause_s: float) -> Iterator[float]:
        for now_s in going(watched, pause_s):
            order.append("rehearsed")
            yield now_s

    async def taken(*_: object) -> None:
        order.append("listens")
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(Watched, "going", rehearsed)
    monkeypatch.setattr(Door, "listen", taken)

    ended = simulate(*H200S, "--watch")

    assert order == ["rehearsed", "listens"]
    assert "--watch-port: cannot listen" in ended.err
