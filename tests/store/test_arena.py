"""Shared memory that cannot be had is told as a setting that is wrong."""

from __future__ import annotations

import pytest

from jevons.base.errors import ConfigError
from jevons.store.arena import Arena


@pytest.mark.parametrize("size_bytes", [1 << 62, 10**20])
def test_more_memory_than_a_machine_can_address_is_a_setting_that_is_wrong(size_bytes: int) -> None:
    with pytest.raises(ConfigError, match=f"dram_bytes: {size_bytes} bytes cannot be shared: "):
        Arena.create(size_bytes)
