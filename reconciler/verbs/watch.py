"""`--watch`: the daemon, from its first look at the configuration to its exit."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

from reconciler.allocator import share_one_arena
from reconciler.board import Board
from reconciler.daemon import Daemon
from reconciler.errors import BangerError
from reconciler.events import Events
from reconciler.hot import look_for_garbage
from reconciler.metrics import Metrics, Textfile, health
from reconciler.notify import Notifier
from reconciler.options import Options
from reconciler.serve import Server, parse_address
from reconciler.status import read_status
from reconciler.verbs.routes import Window
from reconciler.verbs.session import EXIT_OK, events, handling, host_of
from reconciler.watch import accept, settled
from reconciler.wishes import Wishes


@dataclass(frozen=True, slots=True)
class Seeing:
    """How others may look at the daemon: `--listen` and `--metrics-file`."""

    listen: str | None = None
    metrics_file: Path | None = None


def run(
    options: Options, path: Path, wishes: Wishes, seeing: Seeing, *, interval: float | None
) -> int:
    """Watch until told to stop. Raises ConfigError when there is nothing good to start with."""
    share_one_arena()
    look_for_garbage()
    notifier = Notifier.from_environment(os.environ)
    sight = settled(path)
    config = accept(sight, path, interval, locked=wishes.locked)
    address = parse_address(seeing.listen) if seeing.listen else None
    board, metrics = Board(), Metrics()
    with ExitStack() as stack:
        emit = stack.enter_context(events(_as_service(options), board, metrics))
        fields = {"path": str(path), "images": len(config.images), "sha256": config.sha256}
        emit("config.loaded", generation=1, **fields)
        host = host_of(options, emit, threading.Event(), wishes)
        daemon = Daemon(config, sight, host, notifier, interval=interval)
        if seeing.metrics_file:
            textfile = Textfile(partial(_write, seeing.metrics_file, options, metrics, emit))
            stack.callback(textfile.close)
            daemon.on_news = textfile.refresh
        if address:
            server = Server(address, Window(daemon, options, board, metrics).routes())
            stack.callback(server.close)
            emit("listening", address=server.where)

        def handler(number: int, _frame: Any) -> None:
            if number != SIGHUP and daemon.told_to_stop:
                os._exit(128 + number)  # asked twice: at once
            daemon.signal(number)

        with handling(handler, SIGHUP, SIGINT, SIGTERM):
            clean = daemon.run()
    if not clean:
        # what still runs has had its time; the next start heals what it leaves
        sys.stderr.flush()
        os._exit(EXIT_OK)
    return EXIT_OK


def _write(path: Path, options: Options, metrics: Metrics, emit: Events) -> None:
    """The textfile, anew; what cannot be written is said and does no harm."""
    try:
        metrics.write(path, health(read_status(options.state_dir, options.cache_dir)))
    except BangerError as error:
        emit("metrics.failed", message=error.brief)


def _as_service(options: Options) -> Options:
    """A daemon logs where a command shows progress."""
    progress = "none" if options.progress == "auto" else options.progress
    return replace(options, progress=progress, log_level=options.log_level or "info")
