"""`lock CONFIG`: write down which digest every image stands for."""

from __future__ import annotations

from pathlib import Path
from signal import SIGINT, SIGTERM

from reconciler.answers import lock_document
from reconciler.config.load import load
from reconciler.config.lock import (
    format_lock,
    lock_path,
    read_lock,
    under_lock,
    write_lock,
)
from reconciler.config.lock_schema import parse_lock
from reconciler.locking import relock, to_look_up
from reconciler.options import Options
from reconciler.reconcile import pin_all
from reconciler.render import show_lock
from reconciler.verbs.session import (
    EXIT_FAILED,
    EXIT_OK,
    Stop,
    demand_names,
    events,
    handling,
    host_of,
    show,
)
from reconciler.wishes import Wishes


def lock(options: Options, path: Path, upgrade: tuple[str, ...], *, offline: bool) -> int:
    """Look up what is not locked yet, and write the file unless an image failed."""
    config = load(path)
    # a link to nowhere is a file that is to be made
    data = read_lock(path) if lock_path(path).exists() else None
    before = parse_lock(data, config.base, lock_path(path)) if data is not None else ()
    demand_names(config, upgrade)
    asked = to_look_up(under_lock(config, data, demanded=False), upgrade)
    stop = Stop()
    with handling(stop, SIGINT, SIGTERM), events(options) as emit:
        found = pin_all(asked, host_of(options, emit, stop.event, Wishes(offline=offline)))
    locking = relock(found, {entry.name: entry for entry in before})
    raw = format_lock(locking.entries, config.base)
    writes = not locking.failures and raw != data
    if writes:
        write_lock(path, raw)
    document = lock_document(locking, lock_path(path), changed=writes)
    show(options, document, show_lock)
    return EXIT_FAILED if locking.failures else EXIT_OK
