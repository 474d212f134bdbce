"""What kernels compile to is shared by processes, which may fill the directory at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jevons.base.compiled import _Files, alike, compiled, is_compiled, kept_in
from jevons.base.errors import ConfigError

KERNELS = """
import sys
from jevons.base.compiled import compiled
from jevons.base.hub import Hub


@compiled
def inner(h, x):
LONG
    return x


@compiled
def outer(hubs, x):
    return inner(hubs[0], inner(hubs[0], x))


hubs = {"short": Hub({}, {"wanted": 1}), "long": Hub({}, {"other": 2, "wanted": 1})}
print(*(outer(hubs[name].record, 5) for name in sys.argv[1:]))
"""


def test_kernels_that_processes_compiled_for_different_hubs_are_kept_apart(tmp_path: Path) -> None:
    # Too long to become a part of who calls it: it is found by its name.
    lines = (f"    x = (x * 7 + h.wanted + {i}) ^ (x >> 3)" for i in range(400))
    (tmp_path / "kernels.py").write_text(KERNELS.replace("LONG", "\n".join(lines)))

    def run(*names: str) -> str:
        given = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, tmp_path / "kernels.py", *names], env=given, capture_output=True, check=True, text=True
        )
        return done.stdout.strip()

    value = run("short")

    assert run("long") == value != "0"
    assert run("short", "long") == run("long", "short") == f"{value} {value}"


def test_what_two_processes_compile_at_once_for_different_arguments_is_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: Any = _Files(str(tmp_path), "kernel-1.py311", "stamp")
    files.save("int64", "theirs")
    with monkeypatch.context() as before:
        before.setattr(files, "_load_index", dict)  # read before they wrote it
        files.save("float64", "ours")

    assert [files.load(key) for key in ("int64", "float64")] == [None, "ours"]
    files.save("int64", "theirs")
    assert [files.load(key) for key in ("int64", "float64")] == ["theirs", "ours"]


@compiled
def _twice(x: int) -> int:
    return 2 * x


@alike
@compiled
def _thrice(x: int) -> int:
    return 3 * x


def test_of_each_kernel_it_is_known_whether_it_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: list[Any] = [_twice, _thrice]
    for kernel in (kernels[0], kernels[1].__wrapped__):
        file = kernel._cache._cache_file
        monkeypatch.setattr(file, "_index_path", str(tmp_path / file._index_name))
        monkeypatch.setattr(file, "_cache_path", str(tmp_path))
    assert not is_compiled(_twice)
    assert not is_compiled(_thrice)

    assert _twice(2) == 4
    assert (is_compiled(_twice), is_compiled(_thrice)) == (True, False)

    assert _thrice(2) == 6
    assert is_compiled(_thrice)


def test_where_nothing_can_be_kept_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept_in(tmp_path).is_dir()

    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"kernels: .*Not a directory.*; set NUMBA_CACHE_DIR"):
        kept_in(tmp_path)


def test_where_there_is_no_home_that_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match=r"Could not determine home directory\.; set NUMBA_CACHE_DIR"):
        kept_in(tmp_path)
