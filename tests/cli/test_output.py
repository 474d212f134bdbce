"""What the command line writes, wherever it goes: to a narrow terminal, another encoding, a pipe, a full disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from jevons.base.names import instead
from jevons.cli.tables import show

JEVONS = (sys.executable, "-m", "jevons")


def jevons(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*JEVONS, *args], capture_output=True, timeout=120, env={**os.environ, **env})


def drawn(width: int, capsys: pytest.CaptureFixture[str]) -> str:
    table = Table()
    table.add_column("what")
    table.add_column("dollars", no_wrap=True)
    table.add_row("a million output tokens, which pay for all", "1,234.56 to 7,890.12")
    show(table, Console(width=width))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_figures_are_never_cut_however_narrow_the_terminal_is(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    told = drawn(width, capsys)

    assert "1,234.56 to 7,890.12" in told
    assert "…" not in told
    assert all(word in told for word in ("million", "output", "tokens,", "which"))


def test_words_break_over_lines_before_a_table_is_wider_than_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, drawn(60, capsys).splitlines())) <= 60


@pytest.mark.parametrize(
    "args",
    [
        ("site",),
        ("curve", "--at", "20,80"),
        ("demand",),
        ("cost", "same-vr"),
        ("fleet", "list"),
        ("fleet", "show", "economics"),
        ("fleet", "show", "rubin"),
    ],
)
def test_prices_on_60_columns_are_whole(args: tuple[str, ...]) -> None:
    told = jevons(*args, COLUMNS="60", PYTHONIOENCODING="utf-8").stdout.decode()

    assert len(told.splitlines()) > 8
    assert "…" not in told.replace("  … or, each its own", "")


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},  # files are not read in it either
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_a_terminal_that_lacks_letters_gets_all_others(env: dict[str, str]) -> None:
    ended = jevons("claims", **env)

    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"does not hold" in ended.stdout


@pytest.mark.parametrize("args", [("claims",), ("claims", "--json"), ("--help",)])
def test_output_that_cannot_be_written_is_one_line(args: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*JEVONS, *args], stdout=full, stderr=subprocess.PIPE, timeout=120)

    assert ended.returncode == 2
    assert ended.stderr == b"jevons: output cannot be written: No space left on device\n"


@pytest.mark.parametrize("args", [("claims",), ("fleet", "list", "--json"), ("--help",)])
def test_who_has_read_enough_hears_nothing_more(args: tuple[str, ...]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run([*JEVONS, *args], stdout=writes, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writes)

    assert (ended.returncode, ended.stderr) == (1, b"")


def test_an_error_begins_at_once() -> None:
    ended = jevons("serve", "--model", "smollm")

    assert ended.stderr.startswith(b"jevons: smollm: neither a known model nor a directory")


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (("simulat",), "'simulate'"),
        (("cost", "same-vrr"), "'same-vr'"),
        (("demand", "custom-silcon"), "'custom-silicon'"),
        (("demand", "--set", "reuse_cost=0.5"), "'reuse_cost_factor'"),
        (("demand", "--without", "hardwre"), "'hardware'"),
        (("curve", "gb30"), "'gb300'"),
        (("curve", "--model", "deepseekv3"), "'deepseek-v3'"),
        (("site", "--usd-per-hour", "rubn=3"), "'rubin'"),
    ],
)
def test_a_misspelt_name_is_told_what_it_may_be_meant_to_be(args: tuple[str, ...], meant: str) -> None:
    ended = jevons(*args)

    assert ended.returncode == 2
    assert f"did you mean {meant}?" in ended.stderr.decode()


def test_a_name_like_no_other_is_not_guessed_at() -> None:
    assert instead("llama", ["kv", "random"]) == ""


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "args",
    [("site", "--mw"), ("cost", "same-vr", "--site-mw"), ("bench", "--rate"), ("mock", "--speed"), ("top", "--every")],
)
def test_what_is_no_number_to_count_by_is_refused(args: tuple[str, ...], value: str) -> None:
    ended = jevons(*args, value)

    assert ended.returncode == 2
    assert f"Error: Invalid value for '{args[-1]}': " in ended.stderr.decode()


def test_a_solver_that_is_not_installed_is_told_before_kernels_are_compiled(tmp_path: Path) -> None:
    (tmp_path / "highspy.py").write_text("raise ImportError('as where the extra is not installed')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = jevons("plan", "today", PYTHONPATH=path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))

    assert ended.returncode == 2
    assert ended.stderr == b"jevons: plan: needs HiGHS: pip install 'jevons[plan]'\n"


def test_a_ctrl_c_while_modules_are_loaded_ends_it(tmp_path: Path) -> None:
    """Python's importer, and modules written in C, may swallow it."""
    assert interrupted_while_it_loads(tmp_path) == (-signal.SIGINT, b"")


def test_who_ignores_a_ctrl_c_goes_on_while_modules_are_loaded(tmp_path: Path) -> None:
    """As a shell's job in the background does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, told = interrupted_while_it_loads(tmp_path)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    assert code == 1
    assert told.endswith(b"ImportError: the end of it\n")


def interrupted_while_it_loads(folder: Path) -> tuple[int, bytes]:
    """What became of `jevons serve`: its code, and what it told of an error."""
    module = "import time\nprint('loading', flush=True)\ntry:\n    time.sleep(2)\nexcept KeyboardInterrupt:\n    pass\n"
    (folder / "uvloop.py").write_text(module + "raise ImportError('the end of it')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    serve = (*JEVONS, "serve", "--engine", "http://127.0.0.1:1", "--workers", "0", "--port", "0")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(serve, env=env, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    return process.returncode, told
