"""The verbs for one name by hand: `rm`, `rollback`, `suspend`, `resume`, `verify`, `explain`."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from reconciler.answers import done_document, explain_document, verify_document
from reconciler.config.lock import load_with_lock
from reconciler.manual import Done, Hand
from reconciler.options import Options
from reconciler.reconcile import preview
from reconciler.render import show_done, show_explanation, show_verified
from reconciler.verbs.session import EXIT_FAILED, EXIT_OK, demand_names, events, host_of, show
from reconciler.wishes import Wishes


def hand(options: Options, lock_timeout: float) -> Hand:
    """The operator's hand on this run's directories."""
    return Hand(options.state_dir, options.cache_dir, lock_timeout)


def tell(options: Options, mode: str, done: Done) -> int:
    """Print what was done."""
    show(options, done_document(mode, done), show_done)
    return EXIT_OK


def verify(options: Options, name: str | None) -> int:
    """Read artifacts back; a damaged one is a failure."""
    document = verify_document(hand(options, 0.0).verify(name))
    show(options, document, show_verified)
    return EXIT_FAILED if document["failed"] else EXIT_OK


def explain(options: Options, name: str, path: Path, wishes: Wishes) -> int:
    """What a pass would do to one image, and which input is another than it was built from."""
    config = load_with_lock(path, demanded=wishes.locked)
    demand_names(config, (name,))
    with events(options) as emit:
        asked = replace(wishes, only=frozenset((name,)))
        result = preview(config, host_of(options, emit, threading.Event(), asked))
    show(options, explain_document(result), show_explanation)
    return EXIT_FAILED if result.failed else EXIT_OK
