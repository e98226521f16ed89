"""Documents as tables for people. Takes the JSON documents of `report`, so both say the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.launch import Launch, shell
from reconciler.report import Document
from reconciler.sizes import format_size

_MARKS = {"noop": "", "orphan": "yellow", "suspend": "yellow", "prune": "red", "repair": "yellow"}

_FEW = 40
"""Images: a table of more than this leaves out what is as it was."""


def show_pass(document: Document, console: Console, *, verbose: bool) -> None:
    """A pass or a preview: one row an image, then what failed, what was collected, the sum."""
    planned = document["mode"] == "plan"
    table = _table("NAME", "ACTION", "REASON", "DIGEST", "ROOTFS")
    shown = document["images"] if verbose else _worth_showing(document["images"])
    for image in shown:
        action = "failed" if image["error"] else image["action"]
        style = "red" if image["error"] else _MARKS.get(action, "green")
        table.add_row(
            image["name"], Text(action, style), image["reason"], _digest(image), _rootfs(image)
        )
    if shown:
        console.print(table)
    if hidden := len(document["images"]) - len(shown):
        console.print(Text(f"{hidden} more are unchanged (-v lists them)"))
    if planned or verbose:
        _show_stages(document["images"], console, only_runs=not verbose)
    _show_errors(document["errors"], console)
    for warning in document["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"))
    _show_gc(document["gc"], console, planned=planned)
    verdict = "" if document["changed"] or document["failed"] else "nothing to change: "
    verdict = verdict if planned or verdict == "" else "nothing changed: "
    console.print(Text(f"{verdict}{document['msg']}"))


def _worth_showing(images: list[Document]) -> list[Document]:
    """All images of a host that has a few; of many, those with something to tell."""
    if len(images) <= _FEW:
        return images
    return [image for image in images if image["error"] or image["action"] != "noop"]


def _show_stages(images: list[Document], console: Console, *, only_runs: bool) -> None:
    for image in images:
        stages = [s for s in image["stages"] if s["action"] == "run" or not only_runs]
        if not stages:
            continue
        console.print(Text(f"\n{image['name']}"))
        for stage in stages:
            took = f" ({stage['duration_seconds']:.1f} s)" if stage["duration_seconds"] else ""
            head = f"  {stage['name']:<10} {stage['action']:<5}"
            console.print(Text(f"{head} {stage['reason']}{took}"))


def _show_errors(errors: Iterable[Document], console: Console) -> None:
    for error in errors:
        where = f"{error['image']}: {error['stage']}: " if error.get("image") else ""
        console.print(Text(f"error: {where}{error['message']}", "red"))
        if error["hint"]:
            console.print(Text(f"       {error['hint']}"))


def _show_gc(counts: dict[str, int], console: Console, *, planned: bool) -> None:
    things = sum(n for name, n in counts.items() if name != "bytes_freed")
    if things:
        verb = "would free" if planned else "freed"
        said = ", ".join(
            f"{n} {name.removesuffix('_removed')}"
            for name, n in counts.items()
            if n and name != "bytes_freed"
        )
        console.print(Text(f"collected {said}: {verb} {_size(counts['bytes_freed'])}"))


def show_status(document: Document, console: Console) -> None:
    """What the records say: one row a name."""
    table = _table("NAME", "READY", "SIZE", "ON DISK", "KERNEL", "DIGEST", "ROOTFS")
    for image in document["images"]:
        ready = image["conditions"][0]
        style = "green" if ready["status"] == "True" else "red"
        said = ready["status"] if ready["status"] == "True" else ready["reason"]
        if image["suspended"]:
            said, style = f"{said} (suspended: {image['suspended']})", "yellow"
        table.add_row(
            image["name"],
            Text(said, style),
            format_size(image["size"]) if image["size"] else "-",
            _size(image["allocated_bytes"]) if image["allocated_bytes"] is not None else "-",
            image["kernel"] or "none",
            _digest(image),
            _rootfs(image),
        )
    if document["images"]:
        console.print(table)
    else:
        console.print("no images yet")
    for warning in document["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"))
    errors = [e | {"image": i["name"]} for i in document["images"] if (e := i["error"])]
    _show_errors(errors, console)


def show_gc(document: Document, console: Console) -> None:
    """What the collector removed or would remove, why, and the bytes."""
    verb = "would remove" if document["dry_run"] else "removed"
    for removal in document["removed"]:
        size = _size(removal["bytes"])
        console.print(
            Text(f"{verb} {removal['kind']} {removal['path']}: {removal['reason']}, {size}")
        )
    for kept in document["kept"]:
        console.print(Text(f"kept {kept['kind']} {kept['path']}: {kept['reason']}", "yellow"))
    for error in document["errors"]:
        console.print(Text(f"error: {error}", "red"))
    freed = _size(document["gc"]["bytes_freed"])
    word = "would free" if document["dry_run"] else "freed"
    console.print(
        f"{len(document['removed'])} removed, {word} {freed}"
        if not document["dry_run"]
        else f"{len(document['removed'])} to remove, {word} {freed}"
    )


def show_done(document: Document, console: Console) -> None:
    """One line on what was done."""
    console.print(Text(document["msg"]))


def show_verified(document: Document, console: Console) -> None:
    """One line an artifact, and one for each file that is not as it was published."""
    for image in document["images"]:
        style = "green" if image["whole"] else "red"
        console.print(Text(f"{image['name']}: {'whole' if image['whole'] else 'damaged'}", style))
        for name, problem in sorted(image["problems"].items()):
            console.print(Text(f"  {image['path']}/{name} {problem}"))
    console.print(Text(document["msg"]))


def show_lock(document: Document, console: Console) -> None:
    """One line for each image whose entry changes, then what failed, then the sum."""
    for image in document["images"]:
        if image["action"] != "keep":
            moved = image["before"] and image["digest"] and image["before"] != image["digest"]
            was = f"{image['before'][:19]} -> " if moved else ""
            now = f" {was}{image['digest'][:19]}" if image["digest"] else ""
            console.print(Text(f"{image['action']} {image['name']}{now}"))
    _show_errors(document["errors"], console)
    console.print(Text(f"{document['path']}: {document['msg']}"))


def show_explanation(document: Document, console: Console) -> None:
    """The inputs that changed, then the stages with their reasons."""
    console.print(Text(document["msg"]))
    if document["detail"]:
        console.print(Text(f"  {document['detail']}"))
    for one in document["inputs"]:
        mark = "changed" if one["changed"] else "same"
        console.print(Text(f"  {one['input']:<17} {mark:<8} {one['before'] or '-'}"))
        if one["changed"]:
            console.print(Text(f"  {'':<17} {'to':<8} {one['now'] or '-'}"))
    _show_stages([document], console, only_runs=False)
    _show_errors(document["errors"], console)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        wide = heading == "ROOTFS"
        table.add_column(heading, no_wrap=not wide, overflow="fold")
    return table


def _digest(image: dict[str, Any]) -> str:
    return (image["resolved_digest"] or "-")[:19]


def _rootfs(image: dict[str, Any]) -> str:
    """By name: shorter than by id, and what a launcher opens."""
    return f"{image['by_name']}/rootfs.ext4" if image["by_name"] else "-"


def _size(number: int) -> str:
    """Bytes for a table: one decimal, binary units."""
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def show_launch(launch: Launch) -> str:
    """The `launch` verb for people, and for a shell: everything but commands is a comment."""
    config = json.dumps(launch.firecracker, indent=2)
    name = launch.disk.with_suffix(".json").name
    return "\n".join(
        (
            *(f"# {warning}" for warning in launch.warnings),
            "# The guest's own copy of the disk; make it as large as you like, the guest grows",
            shell(launch.prepare),
            "\n# QEMU",
            shell(launch.qemu),
            "\n# Cloud Hypervisor",
            shell(launch.cloud_hypervisor),
            "\n# Firecracker",
            f"cat >{shlex.quote(name)} <<'END'\n{config}\nEND",
            shell(["firecracker", "--no-api", "--config-file", name]),
        )
    )
