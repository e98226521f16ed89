"""`banger-reconcile CONFIG` and `plan`: one pass, or what it would do."""

from __future__ import annotations

from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING

from reconciler.config.lock import load_with_lock
from reconciler.hot import look_for_garbage
from reconciler.options import Options
from reconciler.reconcile import Pass, preview, reconcile
from reconciler.render import show_pass
from reconciler.report import pass_document, summary_line
from reconciler.verbs.session import (
    EXIT_FAILED,
    EXIT_OK,
    Stop,
    console,
    demand_names,
    events,
    handling,
    host_of,
    print_json,
)
from reconciler.wishes import Wishes

if TYPE_CHECKING:
    from reconciler.metrics import Health, Metrics

CHANGED, FAILED_ONLY, CHANGED_AND_FAILED = 2, 4, 6
"""Exit codes of `--detailed-exitcode`."""


def run(
    options: Options,
    path: Path,
    wishes: Wishes,
    *,
    dry_run: bool,
    detailed: bool = False,
    metrics_file: Path | None = None,
) -> int:
    """Run it and print it. metrics_file: where its numbers go, for the textfile collector."""
    look_for_garbage()
    stop, metrics = Stop(), _metrics() if metrics_file else None
    sinks = [metrics] if metrics else []
    config = load_with_lock(
        path, demanded=wishes.locked
    )  # not beneath the handler: a pipe may wait
    demand_names(config, sorted(wishes.only | wishes.replace.keys()))
    with handling(stop, SIGINT, SIGTERM), events(options, *sinks) as emit:
        emit("config.loaded", path=str(path), images=len(config.images), sha256=config.sha256)
        once = preview if dry_run else reconcile
        result = once(config, host_of(options, emit, stop.event, wishes))
        fields = {"message": summary_line(result), "reconcile_id": result.reconcile_id}
        emit("reconcile.finished", changed=result.changed, failed=result.failed, **fields)
    document = pass_document(result)
    if metrics and metrics_file:
        metrics.write(metrics_file, _health(options))
    if options.json:
        print_json(document)
    elif not options.quiet or result.failed:
        show_pass(document, console(options, stderr=options.quiet), verbose=options.verbose)
    if stop.signal and result.failed:
        return 128 + stop.signal
    return _detailed(result) if detailed else (EXIT_FAILED if result.failed else EXIT_OK)


def _health(options: Options) -> list[Health]:
    from reconciler.metrics import health
    from reconciler.status import read_status

    return health(read_status(options.state_dir, options.cache_dir))


def _metrics() -> Metrics:
    from reconciler.metrics import Metrics

    return Metrics()


def _detailed(result: Pass) -> int:
    """0 in sync, else what happened; a preview that cannot be made is 1."""
    if result.mode == "plan":
        return EXIT_FAILED if result.failed else (CHANGED if result.changed else EXIT_OK)
    if result.failed:
        return CHANGED_AND_FAILED if result.changed else FAILED_ONLY
    return CHANGED if result.changed else EXIT_OK
