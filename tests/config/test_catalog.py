"""The catalog: every figure has a source, a user's file adds to it, and what is wrong is one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jevons.base.errors import ConfigError
from jevons.config.catalog import read_catalog
from jevons.facts.hardware import Confidence
from jevons.facts.llm import State

# Of the catalog's names, those that the data sheets collected there use.
CHIPS = {
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "gb200": "gb200_nvl72_gpu",
    "gb300": "gb300_nvl72_gpu",
    "rubin": "rubin_r200_gpu",
    "lpu3": "groq3_lpu_lp30",
    "tpu-v6e": "tpu_v6e",
    "tpu-v7": "tpu_v7_ironwood",
    "trainium2": "trainium2",
    "trainium3": "trainium3",
    "maia200": "maia_200",
    "mtia400": "mtia_400",
    "mi300x": "mi300x",
    "mi355x": "mi355x",
    "mi455x": "mi455x",
}
MODELS = {
    "mistral-small-4": "mistral-small-4-119b-a6b",
    "nemotron-3-super": "nemotron-3-super-120b-a12b",
    "nemotron-3-ultra": "nemotron-3-ultra-550b-a55b",
    "nemotron-3-nano": "nemotron-3-nano-30b-a3b",
}
A_CHIP = """
[chips.mine]
vendor = "me"
kind = "npu"
memory = "LPDDR"
memory_bytes = { value = 32e9, source = "my bench", confidence = "measured" }
memory_bytes_per_s = { value = 100e9, source = "my bench", confidence = "measured" }
"""
A_MODEL = """
[models.mine]
family = "mine"
source = "my config.json"
params = 1e10
weights = "bf16"
layers = 32
hidden = 4096
heads = 32
vocab = 32000
context_tokens = 32768
attention = [{ kind = "full", layers = 32, kv_heads = 8, head_dim = 128 }]
moe = { layers = 32, experts = 8, active = 2, intermediate = 1536 }
"""


def collected(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def test_every_figure_has_a_source_that_is_told_with_its_date() -> None:
    catalog = read_catalog()
    figures = {
        f"{name}.{key}": figure
        for table in (catalog.chips, catalog.racks, catalog.fabrics, catalog.stores)
        for name, record in table.items()
        for key, figure in record.figures().items()
    }
    economics = catalog.economics.figures() | catalog.economics.bounds()

    demand = catalog.demand.figures()
    evidence = [name for name, figure in catalog.evidence.items() if figure.source not in catalog.sources]

    assert len(economics) == len(catalog.economics.__struct_fields__)
    assert len(demand) == len(catalog.demand.__struct_fields__)
    assert evidence == []
    assert [where for where, figure in demand.items() if figure.source not in catalog.sources] == []
    assert [where for where, figure in economics.items() if figure.source not in catalog.sources] == []
    assert [where for where, figure in figures.items() if figure.source not in catalog.sources] == []
    assert [name for name, model in catalog.models.items() if model.source not in catalog.sources] == []
    assert all(source.date for source in catalog.sources.values())
    assert {fig.confidence for fig in figures.values()} <= set(Confidence)


@pytest.mark.parametrize("name", CHIPS)
def test_figures_are_those_that_were_collected_and_what_was_not_found_is_not_there(name: str, shared: Path) -> None:
    chip, theirs = read_catalog().chips[name], collected(shared / "data/hardware.yaml")["systems"][CHIPS[name]]

    for key, field, unit in (
        ("bf16_flops", "bf16_dense_tflops", 1e12),
        ("fp8_flops", "fp8_dense_tflops", 1e12),
        ("fp4_flops", "fp4_dense_tflops", 1e12),
        ("memory_bytes_per_s", "mem_tb_s", 1e12),
    ):
        figure, value = getattr(chip, key), theirs.get(field, {}).get("value")
        assert (figure is None) == (value is None), key
        if figure is not None:
            assert figure.value == pytest.approx(value * unit)
    assert chip.scale_up_bytes_per_s is not None
    assert chip.scale_up_bytes_per_s.value == pytest.approx(theirs["scale_up"]["gb_s_per_chip_bidir"]["value"] * 0.5e9)


def test_what_a_token_leaves_behind_is_what_was_collected(shared: Path) -> None:
    theirs = collected(shared / "data/models.yaml")["models"]
    for name, model in read_catalog().models.items():
        if MODELS.get(name, name) not in theirs:
            continue
        kv = theirs[MODELS.get(name, name)]["kv"]
        grown = sum(kind.elements(1_001) - kind.elements(1_000) for kind in model.attention)

        assert grown == kv["elements_per_token"], name
        assert model.state_bytes == kv.get("fixed_state_bytes_per_seq", 0), name
        assert sum(k.layers for k in model.attention if not isinstance(k, State)) <= model.layers


def test_narrow_numbers_run_at_the_rate_of_the_next_wider_ones_there_are() -> None:
    chips = read_catalog().chips

    assert chips["h100"].flops(4) == chips["h100"].fp8_flops
    assert chips["b200"].flops(4) == chips["b200"].fp4_flops
    assert chips["lpu3"].flops(16) is None


def test_a_file_of_yours_adds_chips(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(A_CHIP + '\n[racks.box]\nchip = "mine"\nchips = 4\n')
    catalog = read_catalog(path)

    assert (catalog.racks["box"].chip, catalog.chips["mine"].memory_bytes.value) == ("mine", 32e9)
    assert "h100" in catalog.chips


def test_a_file_of_yours_replaces_what_economics_hang_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[economics]\nwacc = { value = 0.06, source = "our bank", confidence = "measured" }\n')
    economics = read_catalog(path).economics

    assert (economics.wacc.value, economics.wacc.low) == (0.06, None)
    assert economics.life_years == read_catalog().economics.life_years


def test_economics_are_those_that_were_collected(shared: Path) -> None:
    text = (shared / "docs/economics.md").read_text()
    theirs = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    renamed = {
        "capex_overhead": "capex_overhead_mult",
        "hardware_cost_decline_per_year": "hw_cost_per_token_decline_per_year",
    }
    renamed |= {"custom_silicon_share_2028": "custom_silicon_share_hyperscaler_inference_2028"}
    compared = 0
    for name, figure in read_catalog().economics.figures().items():
        collected_as = theirs.get(renamed.get(name, name))
        if isinstance(collected_as, dict):
            assert (figure.low, figure.value, figure.high) == tuple(
                collected_as[key] for key in ("low", "base", "high")
            )
            compared += 1

    assert compared == 13


def test_what_a_rack_costs_ranges_to_the_most_that_is_told_of_it() -> None:
    catalog = read_catalog()
    price = catalog.racks["vera-rubin-nvl72"].price_usd

    assert price is not None
    assert (price.low, price.high) == (7e6, catalog.evidence["rack_price_most_usd"].value)


def share(name: str, value: float) -> str:
    return f'[economics]\n{name} = {{ value = {value}, source = "x", confidence = "assumed" }}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (A_CHIP.replace("32e9", "-1.0"), "chips.mine.memory_bytes.value: must be "),
        (
            A_CHIP.replace('"measured" }\nm', '"sure" }\nm'),
            "chips.mine.memory_bytes.confidence: must be one of",
        ),
        (A_CHIP.replace("32e9", "inf"), "chips.mine.memory_bytes.value: must be float <= 1e+300, got inf"),
        (A_CHIP + "speed = 3\n", "chips.mine: has no field 'speed'"),
        (A_CHIP + 'fabric = "rope"\n', "chips.mine.fabric: 'rope' is unknown; add it to fabrics"),
        (A_CHIP.replace("value = 32e9,", "value = 32e9, low = 40e9,"), "must lie between low and high"),
        ('[racks.box]\nchip = "none"\nchips = 4\n', "racks.box.chip: 'none' is unknown; add it to chips"),
        ('[racks.box]\nchip = "h100"\nchips = 0\n', "racks.box.chips: must be int >= 1, got 0"),
        ("[economics]\nprofit = 3\n", "economics: has no field 'profit'"),
        (
            '[economics]\nwacc = { value = 0.1, low = 0.2, source = "x", confidence = "assumed" }\n',
            "economics.wacc: must",
        ),
        ('[economics]\nlpx_rack_w = { low = 3, high = 2, source = "x", confidence = "assumed" }\n', "lpx_rack_w: low"),
        (share("utilisation", 50), "economics.utilisation: is a share and must be at most 1, got 50"),
        (share("availability", 97), "economics.availability: is a share and must be at most 1, got 97"),
        (share("wacc", 10), "economics.wacc: is a share and must be at most 1, got 10"),
        (share("memory_price_share", 25), "economics.memory_price_share: is a share and must be at most 1, got 25"),
        (share("pue", 0.2), "economics.pue: must be at least 1, all of a site's power over that of its IT, got 0.2"),
        (A_MODEL.replace("active = 2", "active = 9"), "models.mine.moe.active: must be at most moe.experts, 8, got 9"),
        (
            A_MODEL.replace("moe = { layers = 32", "moe = { layers = 33"),
            "models.mine.moe.layers: must be at most layers",
        ),
        (
            A_MODEL.replace("1e10", "10"),
            "models.mine.vocab times hidden: must be at most params, 10, got 1.31",
        ),
        (
            A_MODEL.replace("layers = 32, kv", "layers = 33, kv"),
            "models.mine.attention's layers: must be at most layers",
        ),
        (
            A_MODEL + "active_params = 2e10\n",
            "models.mine.active_params: must be at most params, 1e+10, got 2e+10",
        ),
        ("[chip.mine]\n", "'chip' is no table of it"),
        ("chips = 3\n", "chips: must be a table, got 3"),
        ("economics = 3\n", "economics: must be a table, got 3"),
        ("[chips", "is not TOML"),
    ],
)
def test_what_is_wrong_in_it_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_catalog(path)

    assert says in str(caught.value)
    assert str(path) in str(caught.value)
