"""The command line. Each command lives in a module of its own, imported when it runs: `--help` must be quick."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from jevons import __version__
from jevons.base.errors import JevonsError
from jevons.base.names import instead

_COMMANDS = {
    "serve": "Serve a model over several workers, behind one OpenAI-compatible door.",
    "top": "See a server's fleet, requests, times and cost in a terminal.",
    "node": "Run workers that a server on another host uses.",
    "mock": "Run a fleet of engines without a model: real HTTP and KV events, timed by chips.",
    "demo": "See what KV-aware routing saves, on a real model, in under two minutes.",
    "bench": "Drive an OpenAI endpoint with a workload and measure what a client sees.",
    "fleet": "Chips, racks and models that are known, with the source of every figure.",
    "plan": "The cheapest fleet that keeps a promise: a bound proposes, rehearsals decide.",
    "wait": "Buy what is there, or wait for what comes: two plans, over some years.",
    "simulate": "Rehearse a fleet: the same decisions on simulated engines, in seconds.",
    "cost": "What a rehearsed fleet's tokens cost, in dollars and joules, and what that hangs on.",
    "curve": "What tokens cost on several chips, over how fast each user gets them: is it ten times cheaper?",
    "site": "What a site of so much power holds of several fleets, and what their tokens cost.",
    "compare": "Where the decisions of two rehearsals part, and what came of it.",
    "sweep": "Rehearse a grid of scenarios in parallel processes.",
    "validate": "How far predictions are off, on points that were measured.",
    "calibrate": "Learn which shares of data sheets are reached, from points that were measured.",
    "demand": "What cheaper tokens do to demand and spending, year by year.",
    "claims": "What holds of what is claimed about tokens, chips and money.",
    "model": "List, fetch and find models.",
}


_UNWRITTEN = (errno.EPIPE, errno.ENOSPC)


class _Lazy(click.Group):
    """Knows its commands' names and one line on each; imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        with loading():
            command: click.Command = importlib.import_module(f"jevons.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{instead(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jevons")
def jevons() -> None:
    """An open inference operating system: serve, rehearse and price, with one set of decisions."""


@contextmanager
def loading() -> Iterator[None]:
    """While modules are imported a Ctrl-C ends the process at once: nothing is under way that would have to be ended.

    Python's importer may swallow a KeyboardInterrupt, and modules written in C may make an ImportError of it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a shell's background job ignores it, and goes on to
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main() -> None:
    """The `jevons` program. Errors of ours are one line and exit code 2; anything else is a bug and shows its trace."""
    _write_in_any_encoding()
    try:
        jevons(standalone_mode=False)
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except JevonsError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in _UNWRITTEN:
            raise
        _cut_short(error)
    except BaseExceptionGroup as group:
        ours, rest = group.split(JevonsError)
        if ours is None or rest is not None:
            raise
        _fail(_first(ours))


def _write_in_any_encoding() -> None:
    """What a terminal's encoding lacks, such as × and … in ASCII, is written as `?`; it would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _cut_short(error: OSError) -> None:
    """What there was to say could not be written: one line, but none where who reads it has read enough (`| head`)."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is left of it goes there as we exit
    if error.errno == errno.EPIPE:
        sys.exit(1)
    click.echo(f"jevons: output cannot be written: {error.strerror}", err=True)
    sys.exit(2)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _fail(error: BaseException) -> None:
    click.echo(f"jevons: {error}", err=True)
    sys.exit(2)
