"""`jevons serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from jevons.cli.options import find_model, log_to_stderr, make_settings, settings_options
from jevons.config import Settings


@click.command("serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
@settings_options([field.name for field in msgspec.structs.fields(Settings)])
@click.option("--picker", help="HOST:PORT where gateways built on Envoy are told their endpoints (ext_proc over gRPC).")
@click.option(
    "--picker-tls",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with tls.crt and tls.key for it; without one it speaks plain HTTP/2.",
)
@click.option("--verbose", is_flag=True, help="Tell more on standard error.")
def command(file: Path | None, picker: str | None, picker_tls: Path | None, verbose: bool, **flags: Any) -> None:
    """Serve a model over several workers, behind one OpenAI-compatible door.

    Without options: the embedded model on two workers at http://127.0.0.1:8000/v1.
    """
    settings = make_settings(file, flags)
    log_to_stderr(verbose)
    model_dir = find_model(settings)
    import uvloop

    from jevons.serve.app import run

    uvloop.run(run(settings, model_dir, picker=picker, picker_tls=picker_tls))
