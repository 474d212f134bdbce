"""What the worker processes of this host are started with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jevons.base.errors import ConfigError
from jevons.base.ids import WorkerId
from jevons.config import Settings
from jevons.engine.shape import mock_shape, read_shape
from jevons.facts.model import ModelShape
from jevons.facts.worker import Role
from jevons.kv.layout import DTYPE_BYTES
from jevons.kv.slabs import Slabs
from jevons.serve.tiers import Tiers
from jevons.store.cipher import TAG_BYTES
from jevons.store.directory import KEPT_SHARE
from jevons.store.header import record_bytes
from jevons.wire.channel import AgentConfig, TierConfig


def worker_configs(settings: Settings, model_dir: Path, tiers: Tiers | None) -> list[AgentConfig]:
    """One for each worker.

    Raises:
        ConfigError: a pool, the arena or the disk is too small for blocks of this model, or what runs it is not
            installed.
    """
    roles = _roles(settings)
    if not roles:
        return []
    _require_engine()
    shape = model_shape(settings, model_dir)
    _check_sizes(settings, shape)
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


def _check_sizes(settings: Settings, shape: ModelShape) -> None:
    block_bytes = max(_block_bytes(settings, shape, role) for _, role in _roles(settings))
    if settings.kv_bytes < block_bytes:
        raise ConfigError(
            f"kv_bytes: must hold at least one block ({block_bytes} bytes for this model and block_size "
            f"{settings.block_size}), got {settings.kv_bytes}; raise it"
        )
    if not settings.dram_bytes:
        return
    page = _tier_config(settings, "")
    page_bytes = shape.kv_bytes_per_token(DTYPE_BYTES[page.dtype]) * page.block_size
    Slabs(settings.dram_bytes, page_bytes)  # as the keeper will, or it cannot
    record = record_bytes(page_bytes + (TAG_BYTES if settings.disk_key_file is not None else 0))
    least = 2 * record + record // KEPT_SHARE
    if settings.disk_path is not None and settings.disk_bytes < least:
        raise ConfigError(
            f"disk_bytes: must hold two blocks and a third of one for recycling ({least} bytes for this model and "
            f"block_size {page.block_size}), got {settings.disk_bytes}; raise it or remove disk_path"
        )


def _require_engine() -> None:
    """Raises ConfigError here, in one line, or each worker would end with a trace."""
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"workers: the embedded engine needs {' and '.join(missing)}, not installed here: "
            f"pip install 'jevons[engine]', or attach engines with --engine"
        )


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
