"""publish: the staging directory becomes the artifact, by one atomic rename.

In: a room whose staging directory holds the rootfs and, where one is wanted, the kernel triple.
Out: `<images>/<id>` with its manifest. See `store.Store.publish` for the order of syncs.
"""

from __future__ import annotations

from reconciler.digests import sparse_digest
from reconciler.files import file_digest, host_errors
from reconciler.manifest import INITRD, KERNEL, ROOTFS, FileEntry, Manifest
from reconciler.model import DesiredImage
from reconciler.room import Room
from reconciler.store import is_open


def run(image: DesiredImage, room: Room) -> None:
    """Write the manifest and publish. What stood there before is swapped out and discarded."""
    with host_errors("the manifest cannot be made"):
        manifest = _manifest(image, room)
    room.checkpoint()
    room.store.publish(image.id, manifest)
    if not is_open(room.staging):  # else a guest runs from what was swapped out: the collector's
        room.store.remove(room.staging)


def _manifest(image: DesiredImage, room: Room) -> Manifest:
    proof = room.store.read_journal(image.id).get("guest")
    files = {ROOTFS: FileEntry(size=room.rootfs.stat().st_size, digest=proof or _sparse(room))}
    for name in (KERNEL, INITRD):
        path = room.staging / name
        if path.exists():
            files[name] = FileEntry(size=path.stat().st_size, digest=file_digest(path))
    pinned, kernel = image.pinned, image.kernel
    return Manifest(
        id=image.id,
        ref=image.spec.ref,
        digest=pinned.digest,
        platform=str(pinned.platform),
        size=files[ROOTFS].size,
        keys=image.keys,
        kernel=kernel.name if kernel else None,
        kernel_from=kernel.origin if kernel else "",
        cmdline=kernel.cmdline if kernel else "",
        modules=kernel.modules if kernel else None,
        blobs=(pinned.digest, pinned.config.digest, *(x.blob.digest for x in pinned.layers)),
        not_carried=tuple(room.not_carried),
        files=files,
    )


def _sparse(room: Room) -> str:
    return sparse_digest(room.rootfs)
