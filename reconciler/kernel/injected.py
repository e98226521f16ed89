"""`inject-modules = true`: the kernel's modules as assets, for `/lib/modules` of the image itself.

`stages.kernel` calls it once the modules lie beside the rootfs, verified; from there on they go
the way of all assets, in both builders. Where the image's `/lib` leads somewhere else, they do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from reconciler.guest.assets import Asset
from reconciler.kernel.depmod import make_lists
from reconciler.kernel.files import TreeEntry, scan_modules
from reconciler.kernel.modinfo import LARGEST_MODULE, unusable
from reconciler.kernel.parts import invalid

_PATH = re.compile(rb"(?:[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,254}/)*[A-Za-z0-9_.][A-Za-z0-9_.@+-]*")
"""What debugfs can be told, and what modules are called."""

_ELSEWHERE = ("build", "source")
"""Links to the headers on the machine that built the kernel: in a guest they lead nowhere."""

_INDEX = "modules.dep.bin"


def module_assets(modules: Path) -> tuple[Asset, ...]:
    """The files and links of a modules tree, and the lists of depmod where it has none.

    modules: `modules/` of a kernel, whose files must stay as long as the assets are used. Raises
    ImageError (kernel-invalid); OSError passes through.
    """
    found = scan_modules(modules)
    if found.release is None:
        raise invalid(
            "inject-modules: nobody can tell for which release these modules are",
            "Give `modules` as a directory that is named like it: /lib/modules/6.1.0-18-amd64.",
        )
    inside = f"{found.release}/"
    assets = {
        name: _asset(name, entry)
        for entry in found.entries
        if entry.kind != "d" and (name := os.fsdecode(entry.path)).startswith(inside)
        if name.removeprefix(inside) not in _ELSEWHERE
    }
    if inside + _INDEX not in assets:
        release = modules / found.release if modules.name != found.release else modules
        for name, content in make_lists(release).items():
            assets[inside + name] = Asset(f"/lib/modules/{inside}{name}", 0o644, content)
    return tuple(assets[name] for name in sorted(assets))


def _asset(name: str, entry: TreeEntry) -> Asset:
    if not _PATH.fullmatch(entry.path) or b".." in entry.path.split(b"/"):
        raise unusable(entry.source, "has a name that no module has")
    path = f"/lib/modules/{name}"
    if entry.kind == "l":
        target = os.fsdecode(entry.target)
        if not _PATH.fullmatch(entry.target.removeprefix(b"/")):
            raise unusable(entry.source, "is a link to what no module is called")
        return Asset(path, 0o777, target=target)
    if entry.stamp[0] > LARGEST_MODULE:
        raise unusable(entry.source, f"is larger than {LARGEST_MODULE >> 20} MiB")
    return Asset(path, entry.mode, source=entry.source)
