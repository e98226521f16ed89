"""The page for people at `/`: images, what runs now, last errors, next tries. Pure.

Data in, HTML out. No script and nothing from elsewhere; it reloads itself. Every value is escaped
here, by `_text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from reconciler.board import Work
from reconciler.report import Document
from reconciler.sizes import format_size

RELOAD_SECONDS = 5

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --good: #18794e; --bad: #c2281d; --wait: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff8b7c; --wait: #f0c000 } }
* { box-sizing: border-box }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.5rem 0 .4rem }
p { margin: .3rem 0 } code { font-size: .85em; overflow-wrap: anywhere }
article { border-top: 1px solid var(--line); padding: .7rem 0 }
article h3 { display: inline; font-size: 1rem; margin-right: .6rem }
.good { color: var(--good) } .bad { color: var(--bad) } .wait { color: var(--wait) }
.small { font-size: .85rem; opacity: .85 } progress { width: 100%; max-width: 20rem }
.bar { display: grid; grid-template-columns: 6rem 1fr 4rem; gap: .5rem; align-items: center }
.bar i { background: var(--good); height: .6rem; min-width: 2px; border-radius: 2px }
"""


def page(
    document: Document,
    status: str,
    working: Iterable[Work],
    times: Mapping[str, Mapping[str, float]],
    now: float,
) -> str:
    """The whole page.

    document: that of `status`; times: image -> stage -> seconds; now: monotonic seconds.
    """
    images = document["images"]
    ready = sum(image["conditions"][0]["status"] == "True" for image in images)
    body = [
        f"<h1>banger-reconcile</h1><p>{_text(status)}</p>",
        f'<p class="small">{ready} of {len(images)} images ready</p>',
        *_working(list(working), now),
        "<h2>Images</h2>",
        *(_image(image, times.get(image["name"], {})) for image in images),
    ]
    if not images:
        body.append("<p>no images yet</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">'
        f"<title>banger-reconcile: {ready} of {len(images)} ready</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _working(working: list[Work], now: float) -> list[str]:
    if not working:
        return []
    rows = ["<h2>Running now</h2>"]
    for work in working:
        share = f' value="{work.done}" max="{work.total}"' if work.total else ""
        label = f"{_text(work.image)}: {_text(work.stage)}"
        rows.append(
            f"<p>{label}, {now - work.since:.0f} s<br>"
            f'<progress aria-label="{label}"{share}></progress></p>'
        )
    return rows


def _image(image: Document, times: Mapping[str, float]) -> str:
    ready = image["conditions"][0]
    good = ready["status"] == "True"
    word, style = ("ready", "good") if good else (_text(ready["reason"]), "bad")
    lines = [f'<h3>{_text(image["name"])}</h3><span class="{style}">{word}</span>']
    if image["suspended"]:
        lines.append(f'<p class="wait">suspended: {_text(image["suspended"])}</p>')
    if image["error"]:
        lines += _error(image["error"], image["next_retry_at"])
    if image["path"]:
        size, used = format_size(image["size"]), image["allocated_bytes"] / 2**20
        lines.append(f'<p class="small">{size}, {used:.1f} MiB on disk, {_text(image["ref"])}</p>')
        lines.append(f"<p><code>{_text(image['by_name'])}/rootfs.ext4</code></p>")
    longest = max(times.values(), default=0.0) or 1.0
    for stage, seconds in times.items():
        width = 100 * seconds / longest
        lines.append(
            f'<div class="bar small"><span>{_text(stage)}</span>'
            f'<i style="width:{width:.1f}%"></i><span>{seconds:.1f} s</span></div>'
        )
    return f"<article>{''.join(lines)}</article>"


def _error(error: Document, retry: str | None) -> list[str]:
    when = f"; next try at {_text(retry)}" if retry else ""
    return [
        f'<p class="bad">{_text(error["stage"])}: {_text(error["message"])}</p>',
        f'<p class="small">{_text(error["hint"])}{when}</p>',
    ]


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
