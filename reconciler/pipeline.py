"""The recipe: the nine stages of one image, in order. It times them and names the one that failed.

`apply` calls `build` for every image that the plan touches. Which stages run was decided by the
planner; here they only run. resolve has run by then: it is how the image came to be pinned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from reconciler.digests import sparse_digest
from reconciler.direct.builder import DirectBuilder
from reconciler.errors import BangerError, Code
from reconciler.files import clone_file, host_errors
from reconciler.hot import a_build
from reconciler.manifest import ROOTFS
from reconciler.model import DesiredImage, Stage
from reconciler.oci.layers import LayerMismatch
from reconciler.plan import ImagePlan
from reconciler.removal import removing
from reconciler.room import Feed, Interrupted, Room
from reconciler.services import Progress, Services
from reconciler.stages import ext4, flatten, guest, kernel, ownership, publish, pull, record
from reconciler.store import is_open

_Run = Callable[[DesiredImage, Room], None]


def build(image: DesiredImage, services: Services, progress: Progress) -> None:
    """Take one image from its plan to its record. Raises the BangerError of the stage that failed.

    The published artifact stays until the new one is whole. An interruption leaves what a later
    pass can prove and go on from; a failure leaves a finished rootfs at most.
    """
    plan = progress.plan
    room = _room(plan, image, services)
    runs = set(plan.runs)
    try:
        if Stage.PUBLISH in runs:
            _rootfs(image, room, progress, runs)
            if Stage.KERNEL in runs and Stage.KERNEL not in progress.done:
                _run(Stage.KERNEL, kernel.run, image, room, progress)
            _run(Stage.PUBLISH, publish.run, image, room, progress)
        if Stage.RECORD in runs:
            _run(Stage.RECORD, record.run, image, room, progress)
    except BangerError as error:
        if not isinstance(error, Interrupted):
            _clean(image, room, error)
        raise
    services.store.remove(room.scratch)


def _clean(image: DesiredImage, room: Room, error: BangerError) -> None:
    """Give the space back; a whole rootfs whose kernel could not be fetched is worth keeping."""
    rootfs_is_whole = Stage.GUEST in room.store.read_journal(image.id)
    keep = rootfs_is_whole and error.retryable and error.code is not Code.DISK_FULL
    for path in (room.scratch,) if keep or is_open(room.staging) else (room.scratch, room.staging):
        try:
            room.store.remove(path)
        except BangerError as also:  # what failed first is what the operator has to know
            room.emit("stage.progress", image=image.spec.name, stage="", note=also.brief)


def _room(plan: ImagePlan, image: DesiredImage, services: Services) -> Room:
    store = services.store
    return Room(
        staging=store.staging(image.id),
        scratch=store.scratch_for(image.keys.flatten),
        blobs=services.blobs,
        sources=services.sources,
        tools=services.tools,
        kernels=services.kernels,
        emit=services.emit,
        store=store,
        records=services.records,
        feed=Feed(image.pinned),
        before=plan.record or plan.taken_over,
        cancelled=services.cancelled,
        give_up=lambda: services.wishes.give_up(image.spec),
        deadline=time.monotonic() + services.timeout,
        limits=services.limits,
    )


def _run(
    stage: Stage,
    run: _Run,
    image: DesiredImage,
    room: Room,
    progress: Progress,
) -> None:
    room.checkpoint()
    with progress.stage(stage):
        run(image, room)


def _rootfs(image: DesiredImage, room: Room, progress: Progress, runs: set[Stage]) -> None:
    """Bring the finished rootfs.ext4 into staging: built, cloned, or found there whole."""
    room.store.prepare_staging(image.id)
    donor = progress.plan.clone_from
    if donor and _clone(image, room, donor):
        return
    if donor:  # the image that was to publish it has failed: that is no reason to fail, too
        runs = {Stage.PULL, Stage.FLATTEN, Stage.EXT4, Stage.OWNERSHIP}
        runs |= {Stage.GUEST} if image.spec.guest else set()
    if Stage.EXT4 in runs:
        room.store.write_journal(image.id, {})  # what is in staging proves nothing from here on
        room.tools.require()
        if image.spec.injects_modules:
            _run(Stage.KERNEL, kernel.run, image, room, progress)
        building = _build_directly if image.builder == "direct" else _build_with_tools
        with a_build():
            digest = building(image, room, progress, runs)
        _note_rootfs(image, room, digest)
    else:
        _take_up(image, room)


def _build_with_tools(image: DesiredImage, room: Room, progress: Progress, runs: set[Stage]) -> str:
    """The stages one after the other; the digest of the rootfs."""
    if Stage.FLATTEN in runs or not flatten.load(image, room):
        _tree(image, room, progress, runs, flatten.run)
    _run(Stage.EXT4, ext4.run, image, room, progress)
    with removing(room.host_tree):  # the filesystem has all of it
        _run(Stage.OWNERSHIP, ownership.run, image, room, progress)
        if Stage.GUEST in runs:
            _run(Stage.GUEST, guest.run, image, room, progress)
        return sparse_digest(room.rootfs)


def _build_directly(image: DesiredImage, room: Room, progress: Progress, runs: set[Stage]) -> str:
    """One pass that reports as the stages; the digest of the rootfs."""
    with DirectBuilder() as builder:
        _tree(image, room, progress, runs, builder.stream)
        _run(Stage.EXT4, builder.finish, image, room, progress)
    if Stage.GUEST in runs:
        _run(Stage.GUEST, guest.verify, image, room, progress)
    return builder.digest


def _take_up(image: DesiredImage, room: Room) -> None:
    """Go on with the rootfs of an interrupted build: what it could not carry was noted."""
    manifest = room.store.manifest(room.staging)  # written last: then the journal may be gone
    if manifest:
        room.not_carried.extend(manifest.not_carried)
    else:
        noted = room.store.read_journal(image.id).get("not_carried", "")
        room.not_carried.extend(noted.splitlines())


def _clone(image: DesiredImage, room: Room, donor: str) -> bool:
    """Clone the rootfs of an artifact; False when there is no such artifact."""
    source = room.store.artifact(donor)
    manifest = room.store.manifest(source)
    if manifest is None or ROOTFS not in manifest.files:
        return False
    with host_errors("the rootfs cannot be cloned"):
        room.rootfs.unlink(missing_ok=True)
        clone_file(source / ROOTFS, room.rootfs)
    room.not_carried.extend(manifest.not_carried)
    _note_rootfs(image, room, manifest.files[ROOTFS].digest)
    return True


def _note_rootfs(image: DesiredImage, room: Room, digest: str) -> None:
    """The rootfs in staging is final: a later pass may go on from here."""
    lines = "\n".join(room.not_carried)
    journal = {Stage.GUEST.value: digest, "not_carried": lines}
    room.store.write_journal(image.id, journal)


def _tree(
    image: DesiredImage, room: Room, progress: Progress, runs: set[Stage], flattening: _Run
) -> None:
    """The merged tree, and the content of its files: pulled and flattened side by side.

    A cached blob that turns out to be damaged is put aside and fetched again, once.
    """
    room.store.prepare_scratch()
    if Stage.FLATTEN not in runs:
        progress.emit("stage.progress", image=image.spec.name, stage="flatten", note="again")
    if progress.plan.verifies_blobs:
        for layer in image.pinned.layers:
            room.blobs.verify(layer.blob, room.checkpoint)
    # another program may share the cache, and have collected what this one found there
    pulling = Stage.PULL in runs or not all(
        room.blobs.has(layer.blob) for layer in image.pinned.layers
    )
    try:
        _pull_and_flatten(image, room, progress, flattening, pulling=pulling)
    except LayerMismatch as error:
        room.blobs.quarantine(error.blob)
        room.feed = Feed(image.pinned)
        progress.failed = None
        _pull_and_flatten(image, room, progress, flattening, pulling=True)


def _pull_and_flatten(
    image: DesiredImage, room: Room, progress: Progress, flattening: _Run, *, pulling: bool
) -> None:
    if not pulling:
        for layer in image.pinned.layers:
            room.feed.put(layer.blob.digest, room.blobs.path(layer.blob.digest))
        _run(Stage.FLATTEN, flattening, image, room, progress)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="pull") as beside:
        pulled = beside.submit(_pull, image, room, progress)
        try:
            _run(Stage.FLATTEN, flattening, image, room, progress)
        except BaseException:
            room.feed.abandoned.set()
            cause = pulled.exception()
            if cause and not isinstance(cause, Interrupted):
                progress.failed = Stage.PULL  # flatten only waited for what did not come
                raise cause from None
            raise
        if error := pulled.exception():
            raise error


def _pull(image: DesiredImage, room: Room, progress: Progress) -> None:
    try:
        _run(Stage.PULL, pull.run, image, room, progress)
    except BaseException as error:
        room.feed.fail(error)  # also when it never began: flatten must not wait for ever
        raise
