"""The command line: quick help, one clear line for an error, JSON and nothing else where asked."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.base.units import count, milliseconds
from jevons.cli import jevons as commands
from jevons.cli.options import LISTS, make_settings
from jevons.cli.serve import program_of, state_file
from jevons.cli.tables import savings
from jevons.config import Settings
from jevons.config.catalog import read_catalog


def jevons(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jevons", *args], capture_output=True, text=True, timeout=60)


def options(command: click.Command, path: list[str]) -> Iterator[tuple[str, click.Option]]:
    """Of it and of those below, with the command's name."""
    yield from ((" ".join(path), param) for param in command.params if isinstance(param, click.Option))
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            yield from options(below, [*path, name])


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "zmq", "tokenizers", "rich")
    loaded = f"import sys, jevons.cli; print([m for m in {heavy} if m in sys.modules])"
    light = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60)
    shown = jevons("--help")

    assert light.stdout.strip() == "[]"
    assert shown.returncode == 0
    assert all(f"  {name} " in shown.stdout for name in ("serve", "node", "demo", "bench", "fleet", "model"))


def test_every_setting_is_an_option_of_serve() -> None:
    shown = jevons("serve", "--help").stdout

    for field in msgspec.structs.fields(Settings):
        flag = field.name.removesuffix("s") if field.name in LISTS else field.name
        assert "--" + flag.replace("_", "-") in shown


def test_every_option_of_every_command_is_explained() -> None:
    unexplained = [(name, option.opts) for name, option in options(commands, []) if not option.help]

    assert unexplained == []


def test_help_tells_the_figures_that_are_published() -> None:
    told, known = jevons("demand", "--help").stdout, read_catalog().economics

    for figure in (known.price_elasticity, known.token_demand_growth_per_year):
        assert f"{figure.low:g}:{figure.value:g}:{figure.high:g} as published" in " ".join(told.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["serve", "--port", "70000"], "jevons: flags: port: must be int <= 65535, got 70000"),
        (["serve", "--policy", "best", "--workers", "1"], "policy: must be one of kv"),
        (["serve", "--engine", "ftp://x"], "engines: must look like http://HOST:PORT, got 'ftp://x'"),
        (["serve", "--engine", "http://x:1,kv=udp://y"], "must look like tcp://HOST:PORT, got 'udp://y'"),
        (["serve", "--engine", "http://x:1", "--picker", "9002"], "picker: must look like HOST:PORT, got '9002'"),
        (
            ["serve", "--node", "x:1", "--peer-secret-file", __file__, "--picker", "x:1"],
            "picker, engines: a gateway sends",
        ),
        (
            ["serve", "--engine", "http://x:1", "--picker-tls", "/tls"],
            "picker-tls, picker: the certificate is the picker",
        ),
        (["serve", "--engine", "http://x:1", "--state", "x", "--no-state"], "state, no-state: give one of them"),
        (
            ["serve", "--engine", "http://x:1", "--scale-command", "/nowhere/scale"],
            "scale-command: must be a program that can be run, got /nowhere/scale",
        ),
        (["serve", "--model", "/nowhere"], "/nowhere: neither a known model nor a directory"),
        (["bench", "http://127.0.0.1:1"], "jevons: engine 127.0.0.1:1: "),
        (["bench", "127.0.0.1:1"], "jevons: engine 127.0.0.1:1: "),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(args: list[str], says: str) -> None:
    ended = jevons(*args)

    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_json_is_one_object_and_nothing_else() -> None:
    listed = json.loads(jevons("model", "list", "--json").stdout)

    assert [m["name"] for m in listed["models"]] == ["gemma3-270m", "smollm2-135m"]


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jevons.toml"
    file.write_text('port = 9000\npolicy = "random"\n')
    settings = make_settings(file, {"port": 9001, "policy": None, "engines": ()})

    assert (settings.port, settings.policy) == (9001, "random")


def test_a_flag_that_is_wrong_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jevons.toml"
    file.write_text("port = 9000\n")

    with pytest.raises(ConfigError, match=r"^flags: port: must be int <= 65535, got 70000"):
        make_settings(file, {"port": 70000})


def test_a_program_may_be_named_as_a_file_or_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for file in (here / "scale.sh", there / "scale"):
        file.parent.mkdir()
        file.touch(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str(there))

    assert program_of(Path("scale.sh")) == here / "scale.sh"
    assert program_of(Path("scale")) == there / "scale"
    (here / "scale.sh").chmod(0o644)
    with pytest.raises(ConfigError, match=r"scale-command: must be a program that can be run, got scale\.sh"):
        program_of(Path("scale.sh"))


def test_who_has_no_home_is_told_that_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    settings = make_settings(None, {"engines": ("http://h:1,kv=tcp://h:2,replay=tcp://h:3",)})

    assert state_file(settings) is None
    assert "there is no home directory, so nothing is kept for the next start; give --state FILE" in caplog.text


def test_savings_know_which_way_is_better() -> None:
    spread = {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    base = {
        "requests": 1,
        "errors": 0,
        "wall_s": 4.0,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "prefill_tokens_computed": 8,
        "output_tokens_per_s": 5.0,
        "ttft_s": spread,
        "itl_s": spread,
        "tpot_s": spread,
        "requests_per_s": None,
        "goodput_rps": None,
    }
    better = {**base, "wall_s": 2.0, "cached_tokens": 6, "output_tokens_per_s": 10.0}

    texts = savings(base, better)
    assert (texts[0], texts[2], texts[4], texts[6], texts[-1]) == ("", "2.00 ×", "3.00 ×", "2.00 ×", "")


def test_values_are_shown_with_three_figures_and_their_unit() -> None:
    assert [milliseconds(s) for s in (0.00123, 0.0123, 1.234)] == ["1.23 ms", "12.3 ms", "1,234 ms"]
    assert count(1234567.0) == "1,234,567"


def test_fleet_tells_figures_with_their_sources() -> None:
    out = jevons("fleet", "show", "vera-rubin-nvl72").stdout

    assert "190 kW–230 kW" in out
    assert "SemiAnalysis" in out
    assert "2.52 EFLOP/s" in out  # dense
    assert json.loads(jevons("fleet", "show", "rubin", "--json").stdout)["fp4_flops"]["confidence"] == "preliminary"
    assert {"h100", "lpu3"} <= set(json.loads(jevons("fleet", "list", "--json").stdout)["chips"])
    assert "350 ns" in jevons("fleet", "show", "c2c").stdout
    assert "200 GB/s" in jevons("fleet", "show", "cmx").stdout
    for name in ("h100", "helios", "gpt-oss-120b"):
        assert name in jevons("fleet", "list").stdout


def test_fleet_does_not_know_everything() -> None:
    done = jevons("fleet", "show", "h1000")

    assert done.returncode == 2
    assert done.stderr.startswith("jevons: fleet show: 'h1000' is unknown; there are h100")


def test_validate_tells_every_point_and_how_far_off_predictions_are(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(
        "id,system,model,precision,parallelism,input_len,output_len,batch/concurrency,metric,value,unit\n"
        "a,h200_sxm,meta-llama/Llama-3.1-70B,fp8,TP4,1024,1024,16,TPOT,10,ms\n"
        "b,h200_sxm,meta-llama/Llama-3.1-70B,fp8,TP4,1024,1024,16,joy,1,USD\n"
    )
    told = json.loads(jevons("validate", "--points", str(path), "--json").stdout)

    assert [(row["id"], row["predicted"] is None, row["reason"]) for row in told["rows"]] == [
        ("a", False, ""),
        ("b", True, "metric 'joy' is not predicted"),
    ]
    assert told["summary"]["all"]["predicted"] == 1
    shown = jevons("validate", "--points", str(path)).stdout
    assert "50%" in shown
    assert "1 not predicted: metric … is not predicted" in shown


def test_known_chips_are_pictures_too(tmp_path: Path) -> None:
    ended = jevons("fleet", "list", "--html", str(tmp_path / "chips.html"))

    text = (tmp_path / "chips.html").read_text()
    assert ended.returncode == 0
    assert all(
        words in text for words in ("What chips can do at most", "memory bandwidth", "mi455x", "What an hour costs")
    )
