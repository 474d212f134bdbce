"""How a server scales is read from the scenario that was rehearsed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jevons.base.errors import ConfigError
from jevons.config.scaling import read_scaling
from jevons.config.scenario import read_scenario, shipped


def written(folder: Path, text: str) -> Path:
    path = folder / "rule.toml"
    path.write_text(text)
    return path


def test_a_scenario_that_ships_is_one() -> None:
    scenario, live = read_scenario(shipped("day")), read_scaling(shipped("day"))
    assert live.rule == scenario.scaling
    assert live.tpot_s == scenario.slo.tpot_s
    assert live.most == {"both": scenario.fleet[0].instances}
    assert live.start_s == {"both": scenario.fleet[0].up_after_s}


def test_the_table_alone_is_enough(tmp_path: Path) -> None:
    live = read_scaling(written(tmp_path, "[scaling]\nheadroom = 0.1\n"))
    assert live.rule.headroom == 0.1
    assert live.most == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[slo]\ntpot_s = 0.1\n", "lacks the field 'scaling'"),
        ("[scaling]\nevery_s = 0.5\n", r"scaling.every_s: must be at least 1, got 0.5"),
        ("[scaling]\nevry_s = 2\n", "scaling: has no field 'evry_s'; did you mean 'every_s'?"),
        ("[scaling]\n[[fleet]]\ninstances = 1\n[[fleet]]\ninstances = 2\n", "one group of each role, got both, both"),
        ("[scaling]\n[[fleet]]\ninstances = 0\n", r"fleet\[0\].instances: must be int >= 1, got 0"),
        ('[scaling]\n[[fleet]]\ninstances = 1\nrole = "prefil"\n', r"fleet\[0\].role: .*both, decode, prefill"),
        ("[scaling]\n[[fleet]]\ninstances = 1\nup_after_s = -1\n", r"fleet\[0\].up_after_s: must be float >= 0.0"),
    ],
)
def test_what_cannot_be_followed_is_told(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_scaling(written(tmp_path, text))
