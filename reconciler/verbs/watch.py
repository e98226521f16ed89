"""`--watch`: the daemon, from its first look at the configuration to its exit."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

from reconciler.daemon import Daemon, accept
from reconciler.notify import Notifier
from reconciler.options import Options
from reconciler.verbs.session import EXIT_OK, events, handling, host_of
from reconciler.watch import settled
from reconciler.wishes import Wishes


def run(options: Options, path: Path, wishes: Wishes, *, interval: float | None) -> int:
    """Watch until told to stop. Raises ConfigError when there is nothing good to start with."""
    notifier = Notifier.from_environment(os.environ)
    sight = settled(path)
    config = accept(sight, path, interval)
    with events(_as_service(options)) as emit:
        fields = {"path": str(path), "images": len(config.images), "sha256": config.sha256}
        emit("config.loaded", generation=1, **fields)
        host = host_of(options, emit, threading.Event(), wishes)
        daemon = Daemon(config, sight, host, notifier, interval=interval)

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


def _as_service(options: Options) -> Options:
    """A daemon logs where a command shows progress."""
    progress = "none" if options.progress == "auto" else options.progress
    return replace(options, progress=progress, log_level=options.log_level or "info")
