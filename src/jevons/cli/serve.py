"""`jevons serve`."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from jevons.base.errors import ConfigError
from jevons.cli import loading
from jevons.cli.options import find_model, log_to_stderr, make_settings, settings_options
from jevons.config import Settings
from jevons.config.scaling import LiveScaling, read_scaling
from jevons.engine.specs import read_specs

log = logging.getLogger("jevons")

# Not settings: what serves and what is served stay the same, whichever these are.
FRONTENDS = "Processes that serve the port together; for attached engines."
STATE = (
    "File of what is known of attached engines, saved now and then and read at the start. "
    "[default: ~/.local/state/jevons/HOST-PORT.state, where engines have a replay endpoint]"
)
SCALING = (
    "TOML file that says how to tell the number of workers that is wanted: a scenario, of which [scaling], [slo] and "
    "[[fleet]] count: instances there can be, and up_after_s."
)
SCALE_COMMAND = "Program that starts and stops attached engines: run with MODEL ROLE WANTED, and more on its input."
CATALOG = "TOML file with chips of yours, for what the page says of cost."


@click.command("serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
@settings_options([field.name for field in msgspec.structs.fields(Settings)])
@click.option("--picker", help="HOST:PORT where gateways built on Envoy are told their endpoints (ext_proc over gRPC).")
@click.option(
    "--picker-tls",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with tls.crt and tls.key for it; without one it speaks plain HTTP/2.",
)
@click.option("--frontends", type=click.IntRange(1, 256), default=1, help=FRONTENDS, show_default=True)
@click.option("--state", type=click.Path(path_type=Path, dir_okay=False), help=STATE)
@click.option("--no-state", is_flag=True, help="Keep nothing.")
@click.option("--catalog", type=click.Path(path_type=Path, dir_okay=False), help=CATALOG)
@click.option("--scaling", type=click.Path(path_type=Path, dir_okay=False), help=SCALING)
@click.option("--scale-command", type=click.Path(path_type=Path, dir_okay=False), help=SCALE_COMMAND)
@click.option("--verbose", is_flag=True, help="Tell more on standard error.")
def command(file: Path | None, verbose: bool, **flags: Any) -> None:
    """Serve a model over several workers, behind one OpenAI-compatible door.

    Without options: the embedded model on two workers at http://127.0.0.1:8000/v1.
    """
    how = _How(**{name: flags.pop(name) for name in _How._fields})
    settings = make_settings(file, flags)
    _check(how)
    log_to_stderr(verbose)
    path = None if how.no_state else how.state or state_file(settings)
    scale = _scale(settings, how)
    if how.frontends > 1:
        _serve_together(settings, how, path)
        return
    model_dir = find_model(settings)
    with loading():
        import uvloop

        from jevons.cli.pages import live_pages
        from jevons.serve.app import run
        from jevons.serve.kept import Kept
        from jevons.serve.scaling import Scale

    kept, program = None if path is None else Kept(path), how.scale_command and program_of(how.scale_command)
    picker = None if how.picker is None else (how.picker, how.picker_tls)
    uvloop.run(run(settings, model_dir, picker, kept, live_pages(how.catalog), Scale(scale, program)))


class _How(NamedTuple):
    """Options that are no settings."""

    picker: str | None
    picker_tls: Path | None
    frontends: int
    state: Path | None
    no_state: bool
    catalog: Path | None
    scaling: Path | None
    scale_command: Path | None


def _check(how: _How) -> None:
    """Raises ConfigError where an option would be passed over."""
    if how.picker_tls is not None and how.picker is None:
        raise ConfigError(
            f"picker-tls, picker: the certificate is the picker's, got {how.picker_tls} and no picker; "
            f"give --picker HOST:PORT"
        )
    if how.state is not None and how.no_state:
        raise ConfigError(f"state, no-state: give one of them, got --no-state and --state {how.state}")


def program_of(told: Path) -> Path:
    """A file, or a name that the shell would find: where it is.

    Raises:
        ConfigError: it cannot be run.
    """
    found = shutil.which(told.absolute()) or shutil.which(told)
    if found is None:
        raise ConfigError(f"scale-command: must be a program that can be run, got {told}")
    return Path(found)


def _scale(settings: Settings, how: _How) -> LiveScaling:
    """How the number of workers that is wanted is told."""
    if how.frontends > 1 and (how.scaling or how.scale_command):
        raise ConfigError(
            f"scaling, frontends: what is wanted is told by one process that sees all requests, got {how.frontends} "
            f"frontends; use one"
        )
    if how.scale_command is not None and (settings.embedded_workers or not settings.engines):
        raise ConfigError(
            f"scale-command, engines: it starts and stops attached engines, got {len(settings.engines)} of them and "
            f"{settings.embedded_workers} embedded workers; attach those there can be, with --workers 0"
        )
    return LiveScaling() if how.scaling is None else read_scaling(how.scaling)


def _serve_together(settings: Settings, how: _How, path: Path | None) -> None:
    with loading():
        import uvloop

        from jevons.serve.frontends import Beside, run_frontends

    beside = Beside("jevons.cli.frontend", path, how.picker, how.picker_tls, how.catalog)
    uvloop.run(run_frontends(settings, how.frontends, beside))


def state_file(settings: Settings) -> Path | None:
    """Where a server at this address keeps what it knows; None: its engines cannot be known again."""
    if not settings.port or not any(spec.replays for spec in read_specs(settings.engines)):
        return None
    xdg = os.environ.get("XDG_STATE_HOME")
    try:
        folder = (Path(xdg) if xdg else Path.home() / ".local" / "state") / "jevons"
    except RuntimeError:
        log.warning("state: there is no home directory, so nothing is kept for the next start; give --state FILE")
        return None
    return folder / f"{settings.host.replace(':', '_')}-{settings.port}.state"
