"""What the worker processes of this host are started with."""

from __future__ import annotations

from pathlib import Path

from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.config import Settings
from jevons.engine.shape import mock_shape, read_shape
from jevons.facts.model import ModelShape
from jevons.facts.worker import Role
from jevons.kv.layout import DTYPE_BYTES
from jevons.serve.tiers import Tiers
from jevons.wire.channel import AgentConfig, TierConfig


def worker_configs(settings: Settings, model_dir: Path, tiers: Tiers | None) -> list[AgentConfig]:
    """One for each worker.

    Raises:
        ConfigError: a pool or the arena cannot hold one block of this model.
    """
    roles = _roles(settings)
    if not roles:
        return []
    shape = model_shape(settings, model_dir)
    block_bytes = max(_block_bytes(settings, shape, role) for _, role in roles)
    for key, rest in (("kv_bytes", ""), ("dram_bytes", " or set it to 0")):
        size_bytes = getattr(settings, key)
        if size_bytes < block_bytes and (key == "kv_bytes" or size_bytes):
            raise ConfigError(
                f"{key}: must hold at least one block ({block_bytes} bytes for this model and block_size "
                f"{settings.block_size}), got {size_bytes}; raise it{rest}"
            )
    tier_config = None if tiers is None else _tier_config(settings, tiers.config.socket)
    return [
        AgentConfig(
            id=WorkerId(id),
            model=settings.served_name or model_dir.name,
            model_dir=str(model_dir),
            device=settings.device,
            threads=settings.threads,
            kv_bytes=settings.kv_bytes,
            block_size=_block_size(settings, role),
            step_tokens=settings.step_tokens,
            max_running=settings.max_running,
            invariant=settings.invariant,
            kv_dtype=_kv_dtype(settings, role),
            role=role,
            mock_tokens_per_s=settings.mock_tokens_per_s,
            tiers=tier_config,
            tensor_parallel=settings.tensor_parallel,
        )
        for id, role in roles
    ]


def model_shape(settings: Settings, model_dir: Path) -> ModelShape:
    shape = read_shape(model_dir)
    return mock_shape(shape) if settings.mock_tokens_per_s else shape


def fit_tokens(settings: Settings, shape: ModelShape) -> int:
    """Tokens of one sequence that every worker's pool can hold."""
    return min(
        settings.kv_bytes // _block_bytes(settings, shape, role) * _block_size(settings, role)
        for _, role in _roles(settings)
    )


def _roles(settings: Settings) -> list[tuple[str, Role]]:
    """Names and roles of the embedded workers."""
    if not (settings.prefill or settings.decode):
        return [(f"w{i}", Role.BOTH) for i in range(settings.embedded_workers)]
    prefill = [(f"p{i}", Role.PREFILL) for i in range(settings.prefill)]
    return prefill + [(f"d{i}", Role.DECODE) for i in range(settings.decode)]


def _block_bytes(settings: Settings, shape: ModelShape, role: Role) -> int:
    return shape.kv_bytes_per_token(DTYPE_BYTES[_kv_dtype(settings, role)]) * _block_size(settings, role)


def _block_size(settings: Settings, role: Role) -> int:
    return (settings.prefill_block_size if role is Role.PREFILL else None) or settings.block_size


def _kv_dtype(settings: Settings, role: Role) -> str:
    return (settings.prefill_kv_dtype if role is Role.PREFILL else None) or settings.kv_dtype


def _tier_config(settings: Settings, socket: str) -> TierConfig:
    """Pages hold whole blocks of every worker, in the numbers of those that read most of them."""
    roles = {role for _, role in _roles(settings)}
    return TierConfig(
        socket=socket,
        block_size=max(_block_size(settings, role) for role in roles),
        dtype=settings.kv_dtype,
        is_mixed=len({_kv_dtype(settings, role) for role in roles}) > 1,
    )
