"""`--watch`: the daemon, from its first look at the configuration to its exit."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

from reconciler.answers import status_document
from reconciler.board import Board
from reconciler.daemon import Daemon, accept
from reconciler.errors import BangerError
from reconciler.events import Events
from reconciler.metrics import CONTENT_TYPE, Metrics
from reconciler.notify import Notifier
from reconciler.options import Options
from reconciler.page import page
from reconciler.report import pass_document, readiness
from reconciler.serve import Answer, Routes, Server, as_json, as_page, parse_address
from reconciler.status import read_status
from reconciler.verbs.session import EXIT_OK, events, handling, host_of
from reconciler.watch import settled
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
            daemon.after_pass = partial(_write, seeing.metrics_file, options, metrics, emit)
        if address:
            server = Server(address, _routes(daemon, options, board, metrics))
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


def _routes(daemon: Daemon, options: Options, board: Board, metrics: Metrics) -> Routes:
    """What each path shows."""

    def status() -> dict[str, Any]:
        return status_document(read_status(options.state_dir, options.cache_dir))

    def ready() -> Answer:
        why = daemon.unready()
        return as_json({"ready": not why, "message": why}, good=not why)

    def healthy() -> Answer:
        return as_json({"healthy": daemon.healthy()}, good=daemon.healthy())

    def measured() -> Answer:
        _count_images(status(), metrics)
        return Answer(metrics.text(), CONTENT_TYPE)

    def last_pass() -> Answer:
        return as_json(pass_document(daemon.last) if daemon.last else status())

    def shown() -> Answer:
        found = status()
        times = {image["name"]: board.stage_times(image["name"]) for image in found["images"]}
        return as_page(page(found, daemon.status(), board.working(), times, time.monotonic()))

    return {
        "/": shown,
        "/healthz": healthy,
        "/readyz": ready,
        "/metrics": measured,
        "/status": last_pass,
    }


def _count_images(document: dict[str, Any], metrics: Metrics) -> None:
    metrics.images(readiness(document))


def _write(path: Path, options: Options, metrics: Metrics, emit: Events) -> None:
    """The textfile after a pass; what cannot be written is said and does no harm."""
    try:
        _count_images(status_document(read_status(options.state_dir, options.cache_dir)), metrics)
        metrics.write(path)
    except BangerError as error:
        emit("metrics.failed", message=error.brief)


def _as_service(options: Options) -> Options:
    """A daemon logs where a command shows progress."""
    progress = "none" if options.progress == "auto" else options.progress
    return replace(options, progress=progress, log_level=options.log_level or "info")
