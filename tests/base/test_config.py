"""Settings: few, documented, checked, and refused by name."""

from pathlib import Path

import msgspec
import pytest

from jevons import config
from jevons.base.errors import ConfigError
from jevons.config import Settings


def test_there_are_at_most_forty_settings_and_each_says_what_it_is() -> None:
    fields = msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"]

    assert len(fields) <= 40
    for name, field in fields.items():
        said = field.get("description", "")
        assert said.endswith("."), f"{name} needs a sentence"
        assert "default" in field, f"{name} needs a default"
        for unit in ("bytes", "_s"):
            if name.endswith(unit):
                assert {"bytes": "bytes", "_s": "econds"}[unit] in said, f"{name}: its sentence names its unit"


def test_the_defaults_are_sound_and_listen_on_loopback_only() -> None:
    settings = config.make({}, "test")

    assert (settings.host, settings.embedded_workers, settings.policy) == ("127.0.0.1", 2, "kv")


def test_attaching_an_engine_starts_no_embedded_worker_unless_asked() -> None:
    assert config.make({"engines": ["http://x:1"]}, "test").embedded_workers == 0
    assert config.make({"engines": ["http://x:1"], "workers": 1}, "test").embedded_workers == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": 70_000}, "test: port: must be int <= 65535, got 70000"),
        ({"workers": -1}, "workers: must be int >= 0, got -1"),
        ({"prot": 8000}, "test: has no field 'prot'; did you mean 'port'?"),
        ({"workers": 0}, "there must be at least one of any"),
        ({"max_running": 20, "step_tokens": 10}, "max_running 20 > step_tokens 10"),
        ({"nodes": ["b:7100"]}, "give them the same file"),
        ({"prefill": 1, "dram_bytes": 1 << 20}, "one needs the other"),
        ({"hang_s": 5.0, "dead_s": 2.0}, "dead_s 2.0 <= hang_s 5.0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_rule(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.make(values, "test")

    assert says in str(caught.value)


def test_a_node_may_be_one_half_of_what_serves_but_no_server() -> None:
    half = {"prefill": 1, "dram_bytes": 1 << 20, "peer_secret_file": "s"}

    assert config.make(half, "test", is_node=True).embedded_workers == 1
    assert config.make({"nodes": ["b:7100"], "peer_secret_file": "s"}, "test").embedded_workers == 0
    with pytest.raises(ConfigError, match="a node has only workers of its own"):
        config.make({"nodes": ["b:7100"], "peer_secret_file": "s"}, "test", is_node=True)


def test_a_toml_file_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('port = 9000\nengines = ["http://a:1"]\n')
    bad.write_text("port = ")

    assert config.make(config.read(good), "good.toml").port == 9000
    with pytest.raises(ConfigError, match="is not TOML"):
        config.read(bad)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.read(tmp_path / "none.toml")
