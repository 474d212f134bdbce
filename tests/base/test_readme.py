"""README names every file; a stale map is worse than none."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_readme_names_every_module_and_bench() -> None:
    tree = (ROOT / "README.md").read_text()
    modules = [p for p in (ROOT / "src" / "jevons").rglob("*.py") if not p.name.startswith("__")]
    unnamed = [p.name for p in modules if f" {p.name}" not in tree and f"/{p.name}" not in tree]
    unnamed += [p.stem for p in (ROOT / "bench").glob("*.py") if p.stem not in tree]

    assert unnamed == []
