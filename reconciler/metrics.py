"""Numbers for Prometheus: a sink for events, and the gauges of what the daemon knows.

`serve` gives them out at /metrics, `--metrics-file` writes them for node_exporter's textfile
collector. A registry of its own: two in one process do not meet. Owns prometheus_client.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reconciler import __version__
from reconciler.files import host_errors
from reconciler.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LAST_WRITE_SECONDS = 2.0
_STAGE_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


@dataclass(frozen=True, slots=True)
class Health:
    """What the gauges tell of one image."""

    name: str
    ready: bool
    stalled: bool
    allocated_bytes: int


def health(status: Status) -> list[Health]:
    """What the records say of every image that has one, or has failed."""
    records, failures = status.contents.records, status.contents.failures
    return [
        Health(
            name,
            ready=name not in failures,
            stalled=name in failures and not failures[name].retryable,
            allocated_bytes=status.allocated.get(name, 0),
        )
        for name in sorted(records.keys() | failures.keys())
    ]


class Metrics:
    """The metrics of one process. Call it with events; readers bring what is true of the images."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        build = Gauge("banger_build_info", "The program.", ["version"], registry=own)
        build.labels(__version__).set(1)
        self._lock = threading.Lock()
        """One reader at a time: the gauges of the images are set anew for each."""
        self._images = Gauge(
            "banger_image_ready", "1 when the image is as wanted.", ["image"], registry=own
        )
        self._stalled = Gauge(
            "banger_image_stalled",
            "1 when only an edit, or a person, is expected to help.",
            ["image"],
            registry=own,
        )
        self._bytes = Gauge(
            "banger_image_allocated_bytes", "What the artifact occupies.", ["image"], registry=own
        )
        self._rejected = Gauge(
            "banger_config_rejected", "1 while the file holds no good configuration.", registry=own
        )
        self._generation = Gauge(
            "banger_config_generation", "Configurations worked by so far.", registry=own
        )
        self._degraded = Gauge(
            "banger_watch_degraded", "1 while the file is polled for want of events.", registry=own
        )
        self._passes = Counter("banger_passes", "Passes that ended.", ["result"], registry=own)
        self._last = Gauge(
            "banger_last_pass_timestamp_seconds", "When a pass last ended.", registry=own
        )
        self._stages = Histogram(
            "banger_stage_duration_seconds",
            "How long stages took.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=own,
        )
        self._failures = Counter(
            "banger_image_failures", "Tries that failed.", ["stage", "code"], registry=own
        )
        self._freed = Counter("banger_gc_freed_bytes", "Bytes that collecting freed.", registry=own)

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        """Count one event."""
        match event:
            case "stage.finished":
                self._stages.labels(fields["stage"]).observe(fields["duration_seconds"])
            case "image.failed":
                self._failures.labels(fields["stage"], fields["error_code"]).inc()
            case "gc.removed":
                self._freed.inc(fields["bytes"])
            case "reconcile.finished":
                self._passes.labels("failed" if fields["failed"] else "ok").inc()
                self._last.set_to_current_time()
            case "reconcile.failed" | "lock.waiting":
                self._passes.labels("impossible").inc()
            case "config.loaded":
                self._rejected.set(0)
                self._generation.set(fields.get("generation", 1))
            case "config.rejected":
                self._rejected.set(1)
            case "watch.armed" | "watch.degraded":
                self._degraded.set(event == "watch.degraded")

    def text(self, images: Iterable[Health]) -> bytes:
        """The exposition format, with these images and no others."""
        with self._lock:
            for gauge in (self._images, self._stalled, self._bytes):
                gauge.clear()
            for image in images:
                self._images.labels(image.name).set(image.ready)
                self._stalled.labels(image.name).set(image.stalled)
                self._bytes.labels(image.name).set(image.allocated_bytes)
            return bytes(generate_latest(self._registry))

    def write(self, path: Path, images: Iterable[Health]) -> None:
        """Replace a textfile: the collector reads only `*.prom`, so never half of one."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with host_errors("the metrics file cannot be written"):
            try:
                temporary.write_bytes(self.text(images))
                temporary.chmod(0o644)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)


class Textfile:
    """Writes when there is news, in a thread of its own: no disk may hold up the daemon's loop."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._due, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="textfile", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """There is news; returns at once. Many calls may become one write."""
        self._due.set()

    def close(self) -> None:
        """Write once more, then end; a disk that does not answer is not waited for."""
        self._over = True
        self._due.set()
        self._thread.join(_LAST_WRITE_SECONDS)

    def _run(self) -> None:
        over = False
        while not over:
            self._due.wait()
            self._due.clear()
            over = self._over  # before the write: what comes during it needs another one
            self._write()
