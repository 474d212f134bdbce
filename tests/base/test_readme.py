"""README names every file; a stale map is worse than none."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_readme_names_every_module_and_bench() -> None:
    tree = (ROOT / "README.md").read_text()
    modules = [p for p in (ROOT / "src" / "jevons").rglob("*.py") if not p.name.startswith("__")]
    unnamed = [p.name for p in modules if f" {p.name}" not in tree and f"/{p.name}" not in tree]
    unnamed += [p.stem for p in (ROOT / "bench").glob("*.py") if p.stem not in tree]

    assert unnamed == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_what_a_page_links_to_is_there_and_goes_with_the_source(page: str) -> None:
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text("utf-8"))
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    paths = [((ROOT / page).parent / link).resolve().relative_to(ROOT.resolve()) for link in linked]

    assert [str(path) for path in paths if not (ROOT / path).exists()] == []
    assert [str(path) for path in paths if path.parts[0] not in packed["include"]] == []


def test_what_a_page_links_to_within_it_is_a_heading() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall("^#+ (.*)$", text, re.M)
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - headings == set()
