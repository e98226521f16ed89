"""What runs now, and how long stages took: a sink for events, read by the page.

The records say what is; this says what is going on. Bounded: one row for each stage at work, and
the stage times of the images that were built last.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

MOST_IMAGES = 1000
"""Images whose stage times are kept: names come and go while a daemon runs for months."""


@dataclass(frozen=True, slots=True)
class Work:
    """A stage of an image that runs. since: monotonic seconds; done of total units, 0: unknown."""

    image: str
    stage: str
    since: float
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(slots=True)
class _Task:
    """A stage at work; parts: what it says of each layer, or of the whole: done, total."""

    since: float
    unit: str = ""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)


class Board:
    """Follows the events of a process. Safe to read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[tuple[str, str], _Task] = {}
        self._stages: OrderedDict[str, dict[str, float]] = OrderedDict()

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        """Take note of one event."""
        image, stage = str(fields.get("image", "")), str(fields.get("stage", ""))
        with self._lock:
            if event == "stage.started":
                self._tasks[image, stage] = _Task(time.monotonic())
            elif event == "stage.progress" and (task := self._tasks.get((image, stage))):
                done, total = fields.get("done"), fields.get("total")
                if isinstance(done, int) and isinstance(total, int):
                    task.unit = str(fields.get("unit", "bytes"))
                    task.parts[str(fields.get("layer", ""))] = (done, total)
            elif event in ("stage.finished", "stage.failed"):
                self._tasks.pop((image, stage), None)
                self._note(image, stage, float(fields["duration_seconds"]))
            elif event == "image.pruned":
                self._stages.pop(image, None)

    def _note(self, image: str, stage: str, seconds: float) -> None:
        self._stages.setdefault(image, {})[stage] = seconds
        self._stages.move_to_end(image)
        while len(self._stages) > MOST_IMAGES:
            self._stages.popitem(last=False)

    def working(self) -> list[Work]:
        """What runs, the oldest first."""
        with self._lock:
            found = [
                Work(
                    image,
                    stage,
                    task.since,
                    sum(done for done, _ in task.parts.values()),
                    sum(total for _, total in task.parts.values()),
                    task.unit,
                )
                for (image, stage), task in self._tasks.items()
            ]
        return sorted(found, key=lambda work: work.since)

    def stage_times(self, image: str) -> dict[str, float]:
        """Seconds that the stages of an image took when they last ran in this process."""
        with self._lock:
            return dict(self._stages.get(image, {}))
