"""What chips must be able to do for a group to be made of them."""

from __future__ import annotations

from jevons.base.errors import ConfigError
from jevons.facts.hardware import Chip
from jevons.facts.llm import WEIGHT_BITS, Llm, Precision
from jevons.perf.roofline import Engine


def check_computes(where: str, chip: Chip, name: str, weights: Precision) -> None:
    """Raises ConfigError: what the chip computes is not known, or not with such weights."""
    if chip.flops(16) is None and chip.flops(8) is None:
        raise ConfigError(f"{where}: FLOP/s of {name} are not known; add them to the catalog")
    if chip.flops(int(WEIGHT_BITS[weights])) is None:
        raise ConfigError(f"{where}: {name} does not compute {weights}; set other weights")


def check_layout(where: str, engine: Engine, chip: str, model: str) -> None:
    """Raises ConfigError: the model cannot be cut so, or the links that would join the chips are not known."""
    _check_cut(where, engine, engine.model, model)
    _check_links(where, engine, chip)


def _check_cut(where: str, engine: Engine, llm: Llm, model: str) -> None:
    group = engine.group
    within = group.tensor // group.attention
    if llm.heads % within:
        raise ConfigError(
            f"{where}.tensor: the {llm.heads} attention heads of {model} cannot be shared by {within} chips; "
            f"take a number that divides them, or copies of attention"
        )
    if llm.moe is not None and group.experts > llm.moe.experts:
        raise ConfigError(
            f"{where}.experts: must be at most the {llm.moe.experts} that {model} has, got {group.experts}"
        )
    if group.pipeline > llm.layers:
        raise ConfigError(f"{where}.pipeline: must be at most the {llm.layers} layers of {model}, got {group.pipeline}")


def _check_links(where: str, engine: Engine, name: str) -> None:
    """Links that nobody knows cost nothing in the formula: any number of chips would be as good as one."""
    chip, chips = engine.chip, engine.group.chips
    if chips == 1:
        return
    if chip.scale_up_bytes_per_s is None:
        raise ConfigError(
            f"{where}: links of {name} are not known, so not what {chips} of them do together; "
            f"add scale_up_bytes_per_s to the catalog"
        )
    domain = chip.domain_size
    if domain is not None and chips > domain.value and chip.scale_out_bytes_per_s is None:
        raise ConfigError(
            f"{where}: {chips} × {name} are more than the {domain.value:g} its fabric joins, its network is not known; "
            f"add scale_out_bytes_per_s to the catalog"
        )
