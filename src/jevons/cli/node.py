"""`jevons node`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from jevons.cli import loading
from jevons.cli.options import fetch, log_to_stderr, make_settings, settings_options
from jevons.config import Settings

# What concerns servers alone.
_OF_SERVERS = {
    *("host", "port", "engines", "nodes", "policy", "max_body_bytes", "request_timeout_s"),
    *("hang_s", "dead_s", "shadow_ttl_s", "drain_s", "record"),
}


@click.command("node", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
@settings_options([field.name for field in msgspec.structs.fields(Settings) if field.name not in _OF_SERVERS])
@click.option("--verbose", is_flag=True, help="Tell more on standard error.")
def command(file: Path | None, verbose: bool, **flags: Any) -> None:
    """Run workers, and the tiers of this host, for servers on other hosts: `jevons serve --node HOST:PORT`.

    Prompts and KV blocks travel unencrypted: use a private network.
    """
    settings = make_settings(file, flags, is_node=True)
    log_to_stderr(verbose)
    model_dir = fetch(settings.model)
    with loading():
        import uvloop

        from jevons.serve.node import run

    uvloop.run(run(settings, model_dir))
