"""What the verbs share: exit codes, signals, events, and the two ways to print a document."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from reconciler.errors import BangerError, Busy, Code, ConfigError, ImageError, StaleLock
from reconciler.options import Options
from reconciler.streams import leave_stdout
from reconciler.text import printable
from reconciler.wishes import Wishes

if TYPE_CHECKING:
    from rich.console import Console

    from reconciler.config.load import Config
    from reconciler.events import Events, Sink
    from reconciler.reconcile import Host

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUSY, EXIT_CONFIG = 0, 1, 64, 75, 78


class Stop:
    """A signal that asked this run to stop, and the event that tells the pass."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal = 0

    def __call__(self, number: int, _frame: object) -> None:
        """The handler. Asked twice: at once."""
        if self.event.is_set():
            os._exit(128 + number)
        self.signal = number
        self.event.set()


@contextmanager
def handling(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    """Let these signals go to the handler while the block runs."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def events(options: Options, *sinks: Sink) -> Iterator[Events]:
    """The events of this run, on their way to the progress display, the log and these sinks."""
    from reconciler.events import Events, log_sink
    from reconciler.progress import progress

    colour = options.colour_on(sys.stderr)
    with progress(options.progress, colour=colour, quiet=options.quiet) as shown:
        all_sinks = [shown, *sinks]
        if options.log_level:
            all_sinks.append(log_sink(options.log_level, options.log_format, colour=colour))
        yield Events(all_sinks)


def host_of(options: Options, emit: Events, stop: threading.Event, wishes: Wishes) -> Host:
    """The host that a pass of this run works on."""
    from reconciler.reconcile import Host

    return Host(options.state_dir, options.cache_dir, emit, stop, wishes)


def demand_names(config: Config, names: Iterable[str]) -> None:
    """Raises ImageError for a name that the configuration does not list."""
    import difflib

    listed = [spec.name for spec in config.images]
    for name in names:
        if name in listed:
            continue
        near = difflib.get_close_matches(name, listed, n=1)
        advice = f"It lists: {', '.join(listed) or 'none'}."
        raise ImageError(
            f"{printable(str(config.path))} lists no image called {printable(name)}",
            code=Code.NOT_FOUND,
            resolution=f'Did you mean "{near[0]}"? {advice}' if near else advice,
        )


def console(options: Options, *, stderr: bool = False) -> Console:
    """A console that knows whether anybody sees colours, and where lines end."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    colour = options.colour_on(stream)
    return Console(
        file=stream,
        width=None if stream.isatty() else 1000,  # a pipe has no edge to fold at
        no_color=not colour,
        force_terminal=colour or None,
        highlight=False,
        markup=False,
        soft_wrap=not stream.isatty(),
    )


def show(
    options: Options, document: dict[str, Any], draw: Callable[[dict[str, Any], Console], None]
) -> None:
    """Print a document: as JSON when that was asked for, else as `draw` draws it."""
    if options.json:
        print_json(document)
    elif not options.quiet:
        draw(document, console(options))


def print_json(document: dict[str, Any]) -> None:
    """The one document on stdout."""
    sys.stdout.write(to_json(document, indent=2, ensure_ascii=True).decode() + "\n")
    sys.stdout.flush()


def exit_code(error: BangerError) -> int:
    """The exit code of a run that could not start or go on."""
    if isinstance(error, ConfigError):
        return EXIT_FAILED if isinstance(error, StaleLock) else EXIT_CONFIG
    return EXIT_BUSY if isinstance(error, Busy) else EXIT_FAILED


def show_usage_error(message: str, help_command: str, *, as_json: bool) -> None:
    """Say what is wrong with a command line, and which help tells more."""
    error = BangerError(message, code=Code.USAGE, resolution=f"Run {help_command}.")
    show_error(error, as_json=as_json)


def show_error(error: BangerError, *, as_json: bool) -> None:
    """A failure of the whole run: for people on stderr, and as a document where one is due."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    if as_json:
        from reconciler.answers import config_error_document

        try:
            print_json(config_error_document(error, problems))
        except OSError:  # a full disk or a reader that went; the words below still come
            leave_stdout()
    lines = [f"error: {error.brief}", *(f"  {problem}" for problem in problems)]
    if error.resolution:
        lines.append(f"  {error.resolution}")
    sys.stderr.write("\n".join(lines) + "\n")
