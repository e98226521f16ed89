"""The page for people: what it says, that hostile text stays text, and how it looks in a browser.

BANGER_SCREENSHOTS=1 writes what the browser shows to docs/screenshots.
"""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.browser import Browser, chromium, needs_chromium

from reconciler.board import Board, Work
from reconciler.page import View, page
from reconciler.serve import Address, Server, as_page

SCREENSHOTS = Path(__file__).parent.parent / "docs" / "screenshots"
SHOWN = {"page-light-desktop.png", "page-dark-phone.png", "well-dark-desktop.png"}
LAST = "2 unchanged in 0.2 s, 5 min ago"
STATE = "/var/lib/banger/images/by-name"
GIB, MIB = 1 << 30, 1 << 20
NOW = datetime(2026, 3, 2, 14, 5, 30, tzinfo=UTC)
TIMES = {"pull": 3.1, "flatten": 2.2, "ext4": 1.9, "guest": 0.1, "publish": 0.4, "record": 0.1}


def image(name: str, ref: str, *, size: int = 4 * GIB, used: int = 612 * MIB) -> dict[str, Any]:
    return {
        "name": name,
        "ref": ref,
        "path": f"/var/lib/banger/images/{name}",
        "by_name": f"{STATE}/{name}",
        "size": size,
        "allocated_bytes": used,
        "suspended": None,
        "error": None,
        "attempts": 0,
        "next_retry_at": None,
        "history": [change("2026-02-20T09:12:44Z", "True", "Reconciled", "artifact 5d0e2b7a91c4")],
    }


def change(at: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"at": at, "status": status, "reason": reason, "message": message}


def failed(
    one: dict[str, Any], stage: str, message: str, hint: str, retry: str | None, **more: Any
) -> dict[str, Any]:
    error = {"stage": stage, "message": message, "hint": hint, "retryable": True, **more}
    return one | {"error": error, "attempts": 3, "next_retry_at": retry}


def full() -> View:
    """A host on a bad day."""
    web = failed(
        image("web", "ghcr.io/lab/web:1.2"),
        "resolve",
        "ghcr.io: 401 for the manifest of ghcr.io/lab/web:1.2",
        "Log in with docker login, podman login or skopeo login, or name an auth-file.",
        "2026-03-02T14:21:07Z",
        retryable=False,
    )
    web["history"] += [
        change("2026-03-02T13:41:02Z", "False", "Unauthorized", "ghcr.io: 401 for the manifest")
    ]
    builder = failed(
        image("ci-builder", "registry.lab:5000/ci/builder:stable"),
        "pull",
        "registry.lab:5000 answered 503 for sha256:93b1c0ffee01",
        "",
        "2026-03-02T14:06:12Z",
    )
    builder |= {"path": None, "history": []}
    images = [
        image("bastion", "ghcr.io/lab/bastion:7", size=2 * GIB, used=211 * MIB),
        builder,
        image("debian-bookworm", "docker.io/library/debian:bookworm") | {"history": []},
        image("old-proxy", "ghcr.io/lab/proxy:3", size=GIB, used=97 * MIB),
        image("postgres", "ghcr.io/lab/postgres:16") | {"suspended": "migration on Tuesday, Ada"},
        web,
    ]
    wanted = {one["name"]: one["ref"] for one in images if one["name"] != "old-proxy"}
    return View(
        host="lab-07",
        path="/etc/banger/banger.toml",
        images=images,
        wanted=wanted | {"gitlab-runner": "ghcr.io/lab/runner:2"},
        working=[
            Work("gitlab-runner", "pull", 88.0, 187 * MIB, 430 * MIB, "bytes"),
            Work("gitlab-runner", "flatten", 96.0),
        ],
        times={"bastion": TIMES, "debian-bookworm": TIMES | {"kernel": 0.6, "ext4": 4.4}},
        now=NOW,
        mono=100.0,
        last="1 updated, 4 unchanged, 2 failed in 9.6 s, 5 min ago",
        next_seconds=None,
    )


def well() -> View:
    day = full()
    good = [one for one in day.images if not (one["error"] or one["suspended"])]
    good = [one for one in good if one["name"] in day.wanted]
    wanted = {one["name"]: one["ref"] for one in good}
    return replace(day, images=good, wanted=wanted, working=[], next_seconds=288.0, last=LAST)


def many_unwell() -> list[dict[str, Any]]:
    return [failed(image(f"i{n}", "r:1"), "pull", "no answer", "", None) for n in range(7)]


def body(view: View) -> str:
    return page(view).partition("<body>")[2]


class TestWords:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({}, "web and ci-builder are unwell"),
            ({"images": many_unwell()}, "7 of 13 images are unwell"),
            ({"images": [], "working": []}, "0 of 6 images ready, work goes on"),
            ({"images": [], "wanted": {}, "working": []}, "The configuration lists none"),
        ],
    )
    def test_the_verdict(self, change: Mapping[str, Any], said: str) -> None:
        assert said in body(replace(full(), **change))

    def test_all_is_well(self) -> None:
        text = body(well())
        assert "All 2 images are ready" in text
        assert "the next in 5 min" in text

    def test_a_rejected_file_comes_before_all_that_is_well(self) -> None:
        text = body(replace(well(), rejected="banger.toml: line 3: unknown key rf"))
        assert text.index("The configuration is rejected") < text.index("bastion")
        assert "line 3: unknown key rf" in text
        assert "nothing is removed" in text

    def test_what_needs_a_hand_comes_first_and_says_why(self) -> None:
        text = body(full())
        images = text[text.index("<h2>Unwell") :]
        order = ["web", "ci-builder", "gitlab-runner", "postgres", "bastion", "old-proxy"]
        at = [images.index(f"<h3>{name}</h3>") for name in order]
        assert at == sorted(at)
        web = images[at[0] : at[1]]
        assert "401" in web
        assert "docker login" in web
        assert "in 16 min, at 14:21:07 UTC" in web
        assert "The artifact from before stays" in web
        assert "Unauthorized" in web
        assert "stays" not in images[at[1] : at[2]]

    def test_what_runs_says_how_far_it_is(self) -> None:
        text = body(full())
        assert "43%, 187.0 MiB of 430.0 MiB, 12 s" in text
        assert 'aria-valuenow="43"' in text

    def test_stage_times_are_bars_and_words(self) -> None:
        text = body(well())
        assert "ext4 1.9 s" in text
        assert "width:39.7%" in text

    def test_hostile_text_is_text(self) -> None:
        evil = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'"
        sick = failed(image(evil, evil), evil, evil, evil, "2026-03-02T14:21:07Z", retryable=False)
        sick |= {"suspended": evil, "history": [change(evil, "False", evil, evil)] * 2}
        view = View(
            host=evil,
            path=evil,
            images=[sick, image("x", evil) | {"suspended": evil}],
            wanted={evil: evil, "new": evil, "x": evil},
            working=[Work(evil, evil, 0.0, 1, 2, evil)],
            times={evil: {evil: 2.0}},
            now=NOW,
            mono=5.0,
            rejected=evil,
            trouble=evil,
            last=evil,
        )
        text = page(view)
        for piece in ("<script", "<img", "<b>"):
            assert piece not in text.replace(f"<b>{html.escape(evil)}</b>", "")
        assert evil not in text


class TestBoard:
    def test_it_forgets_what_has_ended(self) -> None:
        board = Board()
        board("stage.started", {"image": "a", "stage": "pull"})
        for layer, done, total in (("x", 5, 9), ("y", 1, 11), ("x", 9, 9)):
            fields = {"image": "a", "stage": "pull", "layer": layer, "done": done, "total": total}
            board("stage.progress", fields)
        (work,) = board.working()
        assert (work.done, work.total, work.unit) == (10, 20, "bytes")
        board("stage.finished", {"image": "a", "stage": "pull", "duration_seconds": 2.0})
        assert board.working() == []
        assert board.stage_times("a") == {"pull": 2.0}

    def test_names_that_come_and_go_do_not_add_up(self) -> None:
        board = Board()
        for number in range(3000):
            fields = {"image": f"ci-{number}", "stage": "pull", "duration_seconds": 1.0}
            board("stage.finished", fields)
        assert not board.stage_times("ci-0")
        assert board.stage_times("ci-2999") == {"pull": 1.0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


VIEWS = {"page": full(), "well": well()}


@needs_chromium
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width"), [("desktop", 1000), ("phone", 360)])
def test_in_a_browser(
    browser: Browser, tmp_path: Path, name: str, scheme: str, device: str, width: int
) -> None:
    server = Server(Address(host="127.0.0.1"), {"/": lambda: as_page(page(VIEWS[name]))})
    try:
        tab = browser.open(server.where, width=width, dark=scheme == "dark")
        assert tab.asked == [server.where]  # nothing from elsewhere, no icon, no script
        assert tab.complaints == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.scripts.length") == 0
        assert tab.evaluate("document.querySelectorAll('.bar i').length") >= len(TIMES)
        spilt = (
            "[...document.querySelectorAll('main *')]"
            f".filter(e => e.getBoundingClientRect().right > {width}).length"
        )
        assert tab.evaluate(spilt) == 0
        ink = brightness(tab.evaluate(colour("color")))
        paper = brightness(tab.evaluate(colour("backgroundColor")))
        assert (ink > paper) == (scheme == "dark")
        assert contrast(ink, paper) >= 7
        shot = tmp_path / f"{name}-{scheme}-{device}.png"
        tab.screenshot(shot)
        assert shot.stat().st_size > 10_000
        if os.environ.get("BANGER_SCREENSHOTS") and shot.name in SHOWN:
            shutil.copy(shot, SCREENSHOTS)
        tab.close()
    finally:
        server.close()


def colour(of: str) -> str:
    return f"getComputedStyle(document.body).{of}.match(/\\d+/g).slice(0, 3).map(Number)"


def brightness(rgb: list[int]) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
