"""kernel: the kernel triple goes beside the rootfs.

In: `image.kernel`, the digests that the plan was made with. Out: `kernel`, and where there are such
`initrd.img` and `modules/`, in the staging directory, fsynced and equal to those digests. A catalog
entry that is not local yet is fetched first. Without a `kernel-ref` there is nothing to do. With
`inject-modules` the modules are part of the rootfs, too: then `pipeline` runs this stage before it
builds one, and `room.modules` says what goes in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from reconciler.errors import HostError
from reconciler.files import host_errors, remove_tree, sync_directory
from reconciler.kernel.injected import module_assets
from reconciler.kernel.parts import (
    INITRD,
    KERNEL,
    MODULES,
    PARTS,
    check_platform,
    copy,
    recognise,
    source_errors,
)
from reconciler.model import DesiredImage, KernelTriple
from reconciler.room import Room

_PROGRESS_INTERVAL = 0.1
"""Seconds between two reports of a download: nobody reads faster."""


def run(image: DesiredImage, room: Room) -> None:
    """Leave the triple in `room.staging`; by reflink where the filesystem can.

    Raises ImageError (kernel-not-found, kernel-invalid), HostError (retryable when the bytes are
    not those that the plan was made with), RemoteError, Interrupted.
    """
    triple = image.kernel
    if triple is None:
        return
    with host_errors("the staging directory cannot be cleared"):
        for part in PARTS:
            remove_tree(room.staging / part)
    source = room.kernels.fetch(triple.name, room.sources.download, _progress(image, room))
    wanted = {KERNEL: triple.kernel, INITRD: triple.initrd, MODULES: triple.modules}
    parts = [part for part, digest in wanted.items() if digest]
    for part in parts:
        room.checkpoint()
        with source_errors(triple.name, source / part):
            found, _ = copy(part, source / part, room.staging / part)
        if found != wanted[part]:
            raise _not_as_planned(triple, part, room)
    what = recognise(triple.name, {part: room.staging / part for part in parts})
    check_platform(what, image.pinned.platform, triple.name)
    if image.spec.injects_modules:
        with source_errors(triple.name, room.staging / MODULES):
            room.modules = module_assets(room.staging / MODULES)
    with host_errors("the staging directory cannot be synced"):
        sync_directory(room.staging)
    room.progress(KERNEL, image, note=f"{triple.name} is {what}")


def _progress(image: DesiredImage, room: Room) -> Callable[[int], None]:
    last = 0.0

    def report(done: int) -> None:
        nonlocal last
        room.checkpoint()
        now = time.monotonic()
        if now - last >= _PROGRESS_INTERVAL:
            last = now
            room.progress(KERNEL, image, done=done, unit="bytes")

    return report


def _not_as_planned(triple: KernelTriple, part: str, room: Room) -> HostError:
    """The source changed since the plan, or the local copy went bad: either way, look again."""
    room.kernels.forget(triple.name)
    return HostError(
        f'kernel "{triple.name}": {part} is not what the plan was made with',
        resolution="Nothing to do: the next pass takes the kernel as it is then.",
    )
