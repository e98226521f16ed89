"""The verbs that look, and `gc`: `status`, `validate`, `launch`, `schema`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from reconciler.answers import gc_document, status_document
from reconciler.collection import Ages
from reconciler.config.load import load, parse
from reconciler.config.published import json_schema
from reconciler.launch import read_launch
from reconciler.options import Options
from reconciler.reconcile import collect_now
from reconciler.render import show_gc, show_launch, show_status
from reconciler.status import read_status
from reconciler.verbs.session import (
    EXIT_FAILED,
    EXIT_OK,
    events,
    host_of,
    print_json,
    show,
)
from reconciler.wishes import Wishes


def status(options: Options) -> int:
    """What each name stands for, from the records."""
    document = status_document(read_status(options.state_dir, options.cache_dir))
    show(options, document, show_status)
    return EXIT_OK


def collect(options: Options, config: Path | None, lock_timeout: float, *, dry_run: bool) -> int:
    """Collect now; with a configuration its ages count. lock_timeout: seconds."""
    ages = (load(config) if config else parse(b"", Path("/"))).gc
    limits = Ages(staging=ages.staging_min_age, blob=ages.blob_min_age)
    with events(options) as emit:
        host = host_of(options, emit, threading.Event(), Wishes(lock_timeout=lock_timeout))
        collected = collect_now(host, limits, dry_run=dry_run)
    document = gc_document(collected, dry_run=dry_run)
    show(options, document, show_gc)
    return EXIT_FAILED if collected.errors else EXIT_OK


def validate(options: Options, config: Path) -> int:
    """Check a configuration; `-` is standard input."""
    if str(config) == "-":
        parsed = parse(sys.stdin.buffer.read(), Path.cwd(), Path("<stdin>"))
    else:
        parsed = load(config)
    count = len(parsed.images)
    if options.json:
        print_json({**_VALID, "config": {"path": str(config), "sha256": parsed.sha256}})
    elif not options.quiet:
        name = "standard input" if str(config) == "-" else config
        print(f"{name}: valid, {count} {'image' if count == 1 else 'images'}")
    return EXIT_OK


def launch(options: Options, name: str) -> int:
    """Print how to start an image under each of the virtual machine monitors."""
    found = read_launch(options.state_dir, options.cache_dir, name, Path.cwd())
    if options.json:
        print_json(found.document())
    else:
        print(show_launch(found))
    return EXIT_OK


def schema() -> int:
    """Print the schema of the configuration."""
    print_json(json_schema())
    return EXIT_OK


_VALID: dict[str, Any] = {
    "schema_version": "1",
    "mode": "validate",
    "changed": False,
    "failed": False,
    "msg": "valid",
    "errors": [],
}
