"""The command line: parse, call, render. The only place that prints or exits.

Heavy rooms are imported inside the verbs, so that `--help` and `--version` cost next to nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from reconciler import __version__
from reconciler.directories import cache_directory, state_directory
from reconciler.errors import BangerError, Busy, ConfigError
from reconciler.streams import mend_streams

if TYPE_CHECKING:
    from rich.console import Console

    from reconciler.events import Events
    from reconciler.reconcile import Host

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUSY, EXIT_CONFIG = 0, 1, 64, 75, 78
DEFAULT_VERB = "apply"
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(frozen=True, slots=True)
class Options:
    """What every verb takes; the names are those of the flags."""

    json: bool
    state_dir: Path
    cache_dir: Path
    jobs: int | None
    offline: bool
    progress: str
    color: str
    log_level: str | None
    log_format: str
    quiet: bool
    verbose: bool

    def colour_on(self, stream: Any) -> bool:
        """Whether this stream gets colours: never off a terminal, unless they were asked for."""
        if self.color != "auto":
            return self.color == "always"
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        return stream.isatty() and not plain


class Verbs(click.Group):
    """A group whose first argument may be a configuration: then the verb is `apply`.

    Options may stand before the verb as well as after it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb first; without one, `apply` is meant."""
        if args and args[0] not in ("-h", "--help", "--version"):
            args = self._verb_first(ctx, args)
        return super().parse_args(ctx, args)

    def _verb_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The first word that is no option, and no option's value, is the verb or a CONFIG."""
        default = self.commands[DEFAULT_VERB]
        parser = default.make_parser(
            click.Context(default, parent=ctx, ignore_unknown_options=True)
        )
        verb = parser.parse_args(list(args))[0].get("config")
        if not isinstance(verb, str) or verb not in self.commands:
            return [DEFAULT_VERB, *args]
        position = args.index(verb)
        return [verb, *args[:position], *args[position + 1 :]]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways to call it."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] CONFIG")
        formatter.write_usage(ctx.command_path, "VERB [OPTIONS] ...", prefix="       ")


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb takes, gathered into one Options."""
    directory = click.Path(file_okay=False, path_type=Path)
    choice = click.Choice
    options = (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
        click.option("--state-dir", type=directory, help="Records and artifacts live here."),
        click.option("--cache-dir", type=directory, help="Downloaded blobs live here."),
        click.option("--jobs", type=click.IntRange(1, 64), help="Images at a time."),
        click.option("--offline", is_flag=True, help="Ask no registry: use what is cached."),
        click.option("--progress", type=choice(["auto", "plain", "json", "none"]), default="auto"),
        click.option("--color", type=choice(["auto", "always", "never"]), default="auto"),
        click.option("--log-level", type=choice(["debug", "info", "warning", "error"])),
        click.option(
            "--log-format", type=choice(["auto", "console", "json", "journal"]), default="auto"
        ),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no table; errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Every stage, and why."),
    )

    def gathered(
        as_json: bool, state_dir: Path | None, cache_dir: Path | None, **given: Any
    ) -> None:
        common = {name: given.pop(name) for name in _COMMON}
        options = Options(
            json=as_json,
            state_dir=state_dir or state_directory(),
            cache_dir=cache_dir or cache_directory(),
            **common,
        )
        command(options, **given)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        option(gathered)
    return gathered


_COMMON = ["jobs", "offline", "progress", "color", "log_level", "log_format", "quiet", "verbose"]
_config = click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG")


@click.group(cls=Verbs, context_settings=_HELP, invoke_without_command=False)
@click.version_option(__version__, prog_name="banger-reconcile")
def cli() -> None:
    """Keep this host's Firecracker guest images equal to what banger.toml says.

    banger-reconcile CONFIG makes it so; the verbs look, explain and clean up.
    """


@cli.command(context_settings=_HELP)
@_config
@click.option("-n", "--dry-run", is_flag=True, help="The same as `plan`.")
@_common
def apply(options: Options, config: Path, dry_run: bool) -> None:
    """One pass: build what is missing, record it, collect what nothing refers to (the default)."""
    _pass(options, config, dry_run=dry_run)


@cli.command(context_settings=_HELP)
@_config
@_common
def plan(options: Options, config: Path) -> None:
    """What a pass would do, and why. Writes nothing; asks registries for manifests only."""
    _pass(options, config, dry_run=True)


def _pass(options: Options, path: Path, *, dry_run: bool) -> NoReturn:
    from reconciler.config.load import load
    from reconciler.reconcile import preview, reconcile
    from reconciler.report import pass_document

    with _watching_signals() as stop, _events(options) as events:
        config = load(path)
        events("config.loaded", path=str(path), images=len(config.images), sha256=config.sha256)
        result = (preview if dry_run else reconcile)(config, _host(options, events, stop.event))
        events("reconcile.finished", changed=result.changed, failed=result.failed)
    document = pass_document(result)
    if options.json:
        _print_json(document)
    else:
        from reconciler.render import show_pass

        console = _console(options, stderr=options.quiet)
        if not options.quiet or result.failed:
            show_pass(document, console, verbose=options.verbose)
    if stop.signal and result.failed:
        sys.exit(128 + stop.signal)
    sys.exit(EXIT_FAILED if result.failed else EXIT_OK)


@cli.command(context_settings=_HELP)
@_common
def status(options: Options) -> None:
    """Images, their artifacts and their last errors, from the records; needs no configuration."""
    from reconciler.report import status_document
    from reconciler.status import read_status

    document = status_document(read_status(options.state_dir, options.cache_dir))
    if options.json:
        _print_json(document)
    else:
        from reconciler.render import show_status

        show_status(document, _console(options))


@cli.command(context_settings=_HELP)
@click.argument("config", type=click.Path(path_type=Path), required=False, metavar="[CONFIG]")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@_common
def gc(options: Options, config: Path | None, dry_run: bool) -> None:
    """Collect abandoned builds, unreferenced blobs and replaced artifacts now.

    With a CONFIG, its [gc] ages count.
    """
    from reconciler.collection import Ages
    from reconciler.config.load import load, parse
    from reconciler.reconcile import collect_now
    from reconciler.report import gc_document

    ages = (load(config) if config else parse(b"", Path("/"))).gc
    with _events(options) as events:
        host = _host(options, events, threading.Event())
        limits = Ages(staging=ages.staging_min_age, blob=ages.blob_min_age)
        collected = collect_now(host, limits, dry_run=dry_run)
    document = gc_document(collected, dry_run=dry_run)
    if options.json:
        _print_json(document)
    else:
        from reconciler.render import show_gc

        show_gc(document, _console(options))
    sys.exit(EXIT_FAILED if collected.errors else EXIT_OK)


@cli.command(context_settings=_HELP)
@_config
@_common
def validate(options: Options, config: Path) -> None:
    """Check a configuration and name all its errors at once; `-` reads standard input."""
    from reconciler.config.load import load, parse

    if str(config) == "-":
        parsed = parse(sys.stdin.buffer.read(), Path.cwd(), Path("<stdin>"))
    else:
        parsed = load(config)
    count = len(parsed.images)
    if options.json:
        _print_json({**_VALID, "config": {"path": str(config), "sha256": parsed.sha256}})
    elif not options.quiet:
        click.echo(f"{config}: valid, {count} {'image' if count == 1 else 'images'}")


_VALID: dict[str, Any] = {
    "schema_version": "1",
    "mode": "validate",
    "changed": False,
    "failed": False,
    "msg": "valid",
    "errors": [],
}


@cli.command(context_settings=_HELP)
@click.argument("name")
@click.option("--print", "printing", is_flag=True, required=True, help="Nothing else is offered.")
@_common
def launch(options: Options, name: str, printing: bool) -> None:
    """Print how to start an image with QEMU, Cloud Hypervisor or Firecracker."""
    from reconciler.launch import read_launch
    from reconciler.render import show_launch

    found = read_launch(options.state_dir, options.cache_dir, name, Path.cwd())
    if options.json:
        _print_json(found.document())
    else:
        click.echo(show_launch(found))


@cli.command(context_settings=_HELP)
def version() -> None:
    """The version of this program."""
    click.echo(f"banger-reconcile, version {__version__}")


# -- what the verbs share ------------------------------------------------------------------------


class _Stop:
    """A signal that asked this run to stop, and the event that tells the pass."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal = 0

    def __call__(self, number: int, _frame: object) -> None:
        if self.event.is_set():
            os._exit(128 + number)  # asked twice: at once
        self.signal = number
        self.event.set()


@contextmanager
def _watching_signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _events(options: Options) -> Iterator[Events]:
    from reconciler.events import Events, log_sink
    from reconciler.progress import progress

    colour = options.colour_on(sys.stderr)
    level = options.log_level or "error" if options.quiet else options.log_level
    with progress(options.progress, colour=colour, quiet=options.quiet) as sink:
        sinks = [sink]
        if level:
            sinks.append(log_sink(level, options.log_format, colour=colour))
        yield Events(sinks)


def _host(options: Options, events: Events, cancelled: threading.Event) -> Host:
    from reconciler.reconcile import Host

    return Host(
        options.state_dir, options.cache_dir, events, cancelled, options.jobs, options.offline
    )


def _console(options: Options, *, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    colour = options.colour_on(stream)
    width = None if stream.isatty() else 1000  # a pipe has no edge to fold at
    return Console(
        file=stream,
        width=width,
        no_color=not colour,
        force_terminal=colour or None,
        highlight=False,
        markup=False,
        soft_wrap=not stream.isatty(),
    )


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def main() -> NoReturn:
    """Run the command line and exit with a code of the contract."""
    arguments = sys.argv[1:]
    mend_streams()
    as_json = "--json" in arguments
    try:
        cli.main(args=arguments, prog_name="banger-reconcile", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(130)
    except BangerError as error:
        _show_error(error, as_json=as_json)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader has gone away
        sys.exit(EXIT_FAILED)
    except OSError as error:
        from reconciler.files import host_error

        _show_error(host_error("the run ended early", error), as_json=as_json)
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_OK)


def exit_code(error: BangerError) -> int:
    """The exit code of a run that could not start or go on."""
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_BUSY if isinstance(error, Busy) else EXIT_FAILED


def _show_error(error: BangerError, *, as_json: bool) -> None:
    problems = error.problems if isinstance(error, ConfigError) else ()
    if as_json:
        from reconciler.report import config_error_document

        _print_json(config_error_document(error, problems))
    for line in (f"error: {error.brief}", *(f"  {problem}" for problem in problems)):
        click.echo(line, err=True)
    if error.resolution:
        click.echo(f"  {error.resolution}", err=True)
