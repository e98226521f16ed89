"""What runs now, and how long stages took: a sink for events, read by the page.

The records say what is; this says what is going on. Bounded: one row for each image at work, one
total for each stage.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """A stage of an image that runs. since: monotonic seconds; done of total, 0 when unknown."""

    image: str
    stage: str
    since: float
    done: int = 0
    total: int = 0


class Board:
    """Follows the events of a process. Safe to read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: dict[tuple[str, str], Work] = {}
        self._stages: dict[str, dict[str, float]] = {}

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        """Take note of one event."""
        image, stage = str(fields.get("image", "")), str(fields.get("stage", ""))
        with self._lock:
            if event == "stage.started":
                self._work[image, stage] = Work(image, stage, time.monotonic())
            elif event == "stage.progress" and (work := self._work.get((image, stage))):
                done, total = fields.get("done"), fields.get("total")
                if isinstance(done, int) and isinstance(total, int):
                    self._work[image, stage] = replace(work, done=done, total=total)
            elif event in ("stage.finished", "stage.failed"):
                self._work.pop((image, stage), None)
                self._stages.setdefault(image, {})[stage] = float(fields["duration_seconds"])
            elif event == "image.pruned":
                self._stages.pop(image, None)

    def working(self) -> list[Work]:
        """What runs, the oldest first."""
        with self._lock:
            return sorted(self._work.values(), key=lambda work: work.since)

    def stage_times(self, image: str) -> dict[str, float]:
        """Seconds that the stages of an image took when they last ran in this process."""
        with self._lock:
            return dict(self._stages.get(image, {}))
