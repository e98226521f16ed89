"""Progress for whoever looks at stderr: bars on a terminal, plain lines elsewhere, or NDJSON.

Each is a sink for the events of `events.py`. rich draws the bars; nothing else knows terminals.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reconciler.events import Sink, level_of, utc_now

MODES = ("auto", "plain", "json", "none")


@contextmanager
def progress(mode: str, *, colour: bool, quiet: bool) -> Iterator[Sink]:
    """The sink for a mode of `--progress`; bars are taken down when the block ends."""
    if mode == "none" or (quiet and mode == "auto"):
        yield lambda event, fields: None
    elif mode == "json":
        yield _ndjson
    elif mode == "plain" or not sys.stderr.isatty():
        yield _plain
    else:
        with _Bars(colour=colour) as bars:
            yield bars


def _ndjson(event: str, fields: dict[str, Any]) -> None:
    document = {"timestamp": utc_now(), "level": level_of(event), "event": event, **fields}
    _say(json.dumps(document, default=str))


def _plain(event: str, fields: dict[str, Any]) -> None:
    line = _line(event, fields)
    if line:
        _say(line)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # in one piece: images are built side by side
    sys.stderr.flush()


def _line(event: str, fields: dict[str, Any]) -> str:
    """One event in words; empty for those that say nothing to a reader of lines."""
    image, stage = fields.get("image"), fields.get("stage")
    match event:
        case "config.loaded":
            return f"{fields['path']}: {_count(fields['images'], 'image')}"
        case "stage.started":
            return f"{image}: {stage}: {fields.get('reason', '')}"
        case "stage.finished":
            return f"{image}: {stage}: done in {fields['duration_seconds']:.1f} s"
        case "stage.failed":
            return f"{image}: {stage}: failed"
        case "image.ready":
            return f"{image}: ready"
        case "image.failed":
            return f"{image}: {fields.get('message', 'failed')}"
        case "lock.waiting":
            return f"waiting for the lock: {fields.get('message', '')}"
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _Bars:
    """rich's bars: a line for each image that is worked on, and one for each layer on its way."""

    def __init__(self, *, colour: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._lock = threading.Lock()
        self._tasks: dict[tuple[str, str], Any] = {}
        self._console = Console(stderr=True, no_color=not colour, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        image, stage = str(fields.get("image", "")), str(fields.get("stage", ""))
        with self._lock:
            if event == "stage.started":
                self._update((image, stage), f"{image}  {stage}", total=None, note="")
            elif event == "stage.progress":
                self._measure(image, stage, fields)
            elif event in ("stage.finished", "stage.failed"):
                self._drop(image, stage)
            if event in ("image.failed", "image.ready"):
                self._console.print(_line(event, fields), markup=False)

    def _measure(self, image: str, stage: str, fields: dict[str, Any]) -> None:
        layer = str(fields.get("layer", ""))
        what = (image, f"{stage} {layer}") if layer else (image, stage)
        label = f"{image}  {stage}  {layer.partition(':')[2][:12]}".rstrip()
        done, total = fields.get("done"), fields.get("total")
        note = _bytes_of(done, total) if fields.get("unit", "bytes") == "bytes" else ""
        self._update(what, label, total=total, completed=done, note=note)

    def _update(self, what: tuple[str, str], label: str, **fields: Any) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(label, total=None, note="")
        self._progress.update(self._tasks[what], description=label, **fields)

    def _drop(self, image: str, stage: str) -> None:
        for what in [w for w in self._tasks if w[0] == image and w[1].split()[0] == stage]:
            self._progress.remove_task(self._tasks.pop(what))


def _bytes_of(done: object, total: object) -> str:
    if isinstance(done, int) and isinstance(total, int):
        return f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB"
    return ""
