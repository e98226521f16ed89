"""What each path of `--listen` shows, out of the daemon, the records and the board."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reconciler.answers import status_document
from reconciler.board import Board
from reconciler.daemon import Daemon
from reconciler.metrics import CONTENT_TYPE, Metrics, health
from reconciler.options import Options
from reconciler.page import View, page, span
from reconciler.report import pass_document, summary_line, working
from reconciler.serve import Answer, Routes, as_json, as_page
from reconciler.status import read_status


@dataclass(frozen=True, slots=True)
class Window:
    """How others look into one daemon. All of it reads only."""

    daemon: Daemon
    options: Options
    board: Board
    metrics: Metrics

    def routes(self) -> Routes:
        """Path -> what it shows."""
        return {
            "/": self._page,
            "/healthz": self._healthy,
            "/readyz": self._ready,
            "/metrics": self._measured,
            "/status": self._status,
        }

    def _records(self) -> dict[str, Any]:
        return status_document(read_status(self.options.state_dir, self.options.cache_dir))

    def _ready(self) -> Answer:
        why = self.daemon.unready()
        return as_json({"ready": not why, "message": why}, good=not why)

    def _healthy(self) -> Answer:
        good = self.daemon.healthy()
        return as_json({"healthy": good}, good=good)

    def _measured(self) -> Answer:
        found = read_status(self.options.state_dir, self.options.cache_dir)
        return Answer(self.metrics.text(health(found)), CONTENT_TYPE)

    def _status(self) -> Answer:
        """The document of the last pass, and what is at work since."""
        last = self.daemon.last
        document = pass_document(last) if last else self._records()
        stages = {work.image: work.stage for work in self.board.working()}
        for image in document["images"]:
            if stage := stages.get(image["name"]):
                others = [c for c in image["conditions"] if c["type"] != "Reconciling"]
                image["conditions"] = [*others, working(stage, self.daemon.generation)]
        return as_json(document)

    def _page(self) -> Answer:
        daemon, images = self.daemon, self._records()["images"]
        last = daemon.last
        ago = f", {span(time.monotonic() - daemon.ended_at)} ago" if last else ""
        view = View(
            host=socket.gethostname(),
            path=str(daemon.config.path),
            images=images,
            wanted={spec.name: spec.ref for spec in daemon.config.images},
            working=self.board.working(),
            times={image["name"]: self.board.stage_times(image["name"]) for image in images},
            now=datetime.now(UTC),
            mono=time.monotonic(),
            rejected=_words(daemon.rejected.brief, *daemon.rejected.problems)
            if daemon.rejected
            else "",
            trouble=daemon.trouble.brief if daemon.trouble else "",
            last=f"{summary_line(last)} in {last.seconds:.1f} s{ago}" if last else "",
            next_seconds=None if daemon.busy else max(0.0, daemon.next_at() - time.monotonic()),
        )
        return as_page(page(view))


def _words(*parts: str) -> str:
    return "; ".join(parts)
