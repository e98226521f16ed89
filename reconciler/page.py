"""The page for people at `/`: which image is unwell and why, what runs now, how things are. Pure.

Data in, HTML out. What needs a hand comes first. No script and nothing from elsewhere; it reloads
itself. Every value that is not ours is escaped here, by `_text`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from reconciler.board import Work
from reconciler.page_style import STAGE_HUES, STYLE
from reconciler.report import Document
from reconciler.sizes import format_size

RELOAD_SECONDS = 5
_NAMED = 2
"""Images that are unwell and named in the headline; of more there is the number."""
_PAST = 4
"""Changes of state that are shown of an image that is not ready."""


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows.

    images: those of the document of `status`; wanted: name -> ref, as the configuration has them.
    rejected, trouble: why the file, or a pass as a whole, cannot be had; empty when it can.
    last: words on the last pass; next_seconds: until the next one, None while one runs.
    times: image -> stage -> seconds; now: the wall clock, mono: the clock of `Work.since`.
    """

    host: str
    path: str
    images: Sequence[Document]
    wanted: Mapping[str, str]
    working: Sequence[Work]
    times: Mapping[str, Mapping[str, float]]
    now: datetime
    mono: float
    rejected: str = ""
    trouble: str = ""
    last: str = ""
    next_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """How an image is, in one word. tone: a class of the style sheet; rank: the worst is 0."""

    word: str
    tone: str
    rank: int


STALLED = State("stalled", "bad", 0)
FAILING = State("failing, tried again", "bad", 1)
BUILDING = State("building", "work", 2)
PENDING = State("not built yet", "wait", 3)
SUSPENDED = State("suspended", "wait", 4)
ORPHAN = State("orphan", "rest", 6)
READY = State("ready", "good", 5)
UNWELL = (STALLED, FAILING)


def state_of(image: Document, view: View) -> State:
    """The most pressing thing about an image."""
    if image["error"]:
        return FAILING if image["error"]["retryable"] else STALLED
    if image["name"] not in view.wanted:
        return ORPHAN
    if image["suspended"]:
        return SUSPENDED
    if any(work.image == image["name"] for work in view.working):
        return BUILDING
    return READY if image["path"] else PENDING


def page(view: View) -> str:
    """The whole page."""
    known = {image["name"] for image in view.images}
    new = [_unbuilt(name, ref) for name, ref in view.wanted.items() if name not in known]
    rows = [(state_of(image, view), image) for image in (*view.images, *new)]
    rows.sort(key=lambda row: (row[0].rank, row[1]["name"]))
    states = [state for state, _ in rows]
    verdict, tone = _verdict(view, states, [i["name"] for s, i in rows if s in UNWELL])
    body = [
        f'<p class="over">banger-reconcile on {_text(view.host)}</p>',
        f'<h1 class="{tone}">{_text(verdict)}</h1>',
        f'<p class="soft">{_text(_passes(view))}</p>',
        _counts(states),
        *_notes(view),
        *_section("Unwell", [_image(i, s, view) for s, i in rows if s in UNWELL]),
        *_section("Running now", _working(view)),
        *_section("Images", [_image(i, s, view) for s, i in rows if s not in (*UNWELL, BUILDING)]),
        "" if rows else "<p>The configuration lists none, and none is recorded.</p>",
        '<footer>Also here: <a href="/status">/status</a>, <a href="/metrics">/metrics</a>, '
        '<a href="/healthz">/healthz</a>, <a href="/readyz">/readyz</a>. '
        f"As of {view.now:%H:%M:%S} UTC; loads itself again every {RELOAD_SECONDS} s.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">'
        f"<title>{_text(verdict)}: {_text(view.host)}</title>"
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _unbuilt(name: str, ref: str) -> Document:
    nothing = ("error", "path", "suspended", "size", "allocated_bytes", "digest", "next_retry_at")
    return {"name": name, "ref": ref, "history": [], **dict.fromkeys(nothing)}


def _verdict(view: View, states: Sequence[State], unwell: Sequence[str]) -> tuple[str, str]:
    """What to know when there is time for one line, and its tone."""
    if unwell and len(unwell) <= _NAMED:
        return f"{' and '.join(unwell)} {'is' if len(unwell) == 1 else 'are'} unwell", "bad"
    if unwell:
        wanted = sum(state is not ORPHAN for state in states)
        return f"{len(unwell)} of {_images(wanted)} are unwell", "bad"
    if view.trouble:
        return "No pass can be made", "bad"
    if view.rejected:
        return "The configuration is rejected", "bad"
    if BUILDING in states or PENDING in states:
        return f"{states.count(READY)} of {_images(len(view.wanted))} ready, work goes on", "work"
    if SUSPENDED in states:
        return f"All well, {_images(states.count(SUSPENDED))} suspended", "wait"
    every = len(view.wanted)
    return (f"{_images(every)} ready" if every == 1 else f"All {every} images are ready"), "good"


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _passes(view: View) -> str:
    said = [f"Last pass: {view.last}" if view.last else "No pass is done yet"]
    if view.next_seconds is None:
        said.append("a pass is running now")
    else:
        said.append(f"the next in {span(view.next_seconds)}")
    return "; ".join(said) + "."


def _counts(states: Sequence[State]) -> str:
    found = {state: states.count(state) for state in sorted(set(states), key=lambda s: s.rank)}
    rows = (f'<li class="{s.tone}">{n} {_text(s.word)}</li>' for s, n in found.items())
    return f'<ul class="counts">{"".join(rows)}</ul>'


def _notes(view: View) -> list[str]:
    found = []
    if view.rejected:
        found.append(
            '<div class="note bad"><h3>The configuration is rejected</h3>'
            f'<p class="why bad">{_text(view.rejected)}</p><p class="small">The last good one stays'
            f" in force and nothing is removed. Mend <code>{_text(view.path)}</code>.</p></div>"
        )
    if view.trouble:
        found.append(
            '<div class="note bad"><h3>No pass can be made</h3>'
            f'<p class="why bad">{_text(view.trouble)}</p></div>'
        )
    return found


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"<h2>{title}</h2>", *parts] if parts else []


def _working(view: View) -> list[str]:
    """A card for each image at work, with a bar for each stage that runs."""
    stages: dict[str, list[str]] = {}
    for work in view.working:
        stages.setdefault(work.image, []).append(_stage(work, view.mono))
    refs = {image["name"]: image["ref"] for image in view.images if image["ref"]}
    return [
        f'<article><div class="head"><h3>{_text(name)}</h3>'
        f'<span class="state work">{BUILDING.word}</span></div>'
        f'<p class="small soft">{_text(view.wanted.get(name) or refs.get(name, ""))}</p>'
        f"{''.join(bars)}</article>"
        for name, bars in stages.items()
    ]


def _stage(work: Work, mono: float) -> str:
    known = 0 < work.done <= work.total
    share = 100 * work.done / work.total if known else 0
    aria = f' aria-valuenow="{share:.0f}"' if known else ""
    width = f' style="width:{share:.1f}%"' if known else ""
    kind = "bar at" if known else "bar at unknown"
    told = f'role="progressbar" aria-label="{_text(work.image)}: {_text(work.stage)}"{aria}'
    return (
        f'<div class="stage"><div class="head"><b>{_text(work.stage)}</b>'
        f'<span class="size">{_progress(work)}{span(mono - work.since)}</span></div>'
        f'<div class="{kind}" {told}><i{width}></i></div></div>'
    )


def _progress(work: Work) -> str:
    if not 0 < work.done <= work.total:
        return ""
    if work.unit == "bytes":
        amount = f"{_mib(work.done)} of {_mib(work.total)}"
    else:
        amount = f"{work.done:,} of {work.total:,} {_text(work.unit)}"
    return f"{100 * work.done // work.total}%, {amount}, "


def _image(image: Document, state: State, view: View) -> str:
    times = view.times.get(image["name"], {})
    parts = [
        f'<div class="head"><h3>{_text(image["name"])}</h3>'
        f'<span class="state {state.tone}">{_text(state.word)}</span>{_size(image)}</div>',
        *_error(image, state, view),
    ]
    if image["suspended"]:
        parts.append(f'<p class="why wait">Suspended: {_text(image["suspended"])}</p>')
    if state is ORPHAN:
        parts.append('<p class="small soft">The configuration does not list it any more.</p>')
    if ref := image["ref"] or view.wanted.get(image["name"]):
        parts.append(f'<p class="small soft">{_text(ref)}</p>')
    if image["path"]:
        parts.append(f'<p class="small"><code>{_text(image["by_name"])}/rootfs.ext4</code></p>')
    parts += [*_times(times), *_past(image, state, view)]
    tone = f' class="{state.tone}"' if state.tone in ("bad", "wait") else ""
    return f"<article{tone}>{''.join(parts)}</article>"


def _size(image: Document) -> str:
    if not image["path"]:
        return ""
    used = image["allocated_bytes"]
    disk = f", {_mib(used)} on disk" if used is not None else ""
    return f'<span class="size">{format_size(image["size"])}{disk}</span>'


def _error(image: Document, state: State, view: View) -> list[str]:
    error = image["error"]
    if not error:
        return []
    stage = f"{_text(error['stage'])}: " if error["stage"] else ""
    retry = image["next_retry_at"]
    when = f"Next try {_until(retry, view.now)}." if retry else "Not tried again by itself."
    kept = " The artifact from before stays in place." if image["path"] else ""
    count = image["attempts"]
    tries = f"{count} failed {'try' if count == 1 else 'tries'}. "
    return [
        f'<p class="why {state.tone}">{stage}{_text(error["message"])}</p>',
        f"<p>{_text(error['hint'])}</p>" if error["hint"] else "",
        f'<p class="small soft">{tries}{_text(when)}{kept}</p>',
    ]


def _times(times: Mapping[str, float]) -> list[str]:
    """One bar of all stages, each as wide as the time it took, and the times in words."""
    whole = sum(times.values())
    if not whole:
        return []
    bar, words = [], []
    order = list(STAGE_HUES)
    for stage, seconds in sorted(times.items(), key=lambda t: (*order, t[0]).index(t[0])):
        hue = f"--hue:{STAGE_HUES.get(stage, 0)}"
        bar.append(f'<i style="{hue};width:{100 * seconds / whole:.1f}%"></i>')
        words.append(f'<li style="{hue}">{_text(stage)} {span(seconds)}</li>')
    return [
        f'<div class="bar" aria-hidden="true">{"".join(bar)}</div>',
        f'<ul class="times" aria-label="stage times">{"".join(words)}</ul>',
    ]


def _past(image: Document, state: State, view: View) -> list[str]:
    """How an image that is not well came to be so, the latest first."""
    if state not in UNWELL or len(image["history"]) < 2:
        return []
    rows = [
        f'<li class="{"good" if change["status"] == "True" else "bad"}">'
        f"{_text(_when(change['at'], view.now))} "
        f"<b>{_text(change['reason'])}</b> {_text(change['message'])}</li>"
        for change in reversed(image["history"][-_PAST:])
    ]
    return [f'<ul class="past" aria-label="history">{"".join(rows)}</ul>']


def _moment(text: str) -> datetime | None:
    """A time of the records (RFC 3339, UTC), unless it is none."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else None


def _when(text: str, now: datetime) -> str:
    """A time for people: with its day when that is another."""
    then = _moment(text)
    if then is None:
        return text
    return f"{then:%H:%M:%S} UTC" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M} UTC"


def _until(text: str, now: datetime) -> str:
    """A time to come, for people."""
    then = _moment(text)
    seconds = (then - now).total_seconds() if then else 0.0
    return f"in {span(seconds)}, at {_when(text, now)}" if seconds > 0 else "now"


def span(seconds: float) -> str:
    """A length of time for people, in the unit that fits."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
