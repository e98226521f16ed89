"""The room in which one image is built: its directories, its tools, what earlier stages left there.

Every stage has the same signature, `run(image: DesiredImage, room: Room) -> None`: it reads what
the stages before it left in the room and leaves its one output at the path named here. `pipeline`
makes a room; nobody else does.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.errors import BangerError, Code, HostError
from reconciler.model import DesiredImage, Emit, PinnedImage, Record
from reconciler.oci.limits import DEFAULTS, Limits

if TYPE_CHECKING:
    from reconciler.guest.assets import Asset
    from reconciler.kernel.store import KernelStore
    from reconciler.oci.blobs import BlobCache
    from reconciler.oci.merge import Tree
    from reconciler.oci.source import Sources
    from reconciler.records import Records
    from reconciler.store import Store
    from reconciler.tools import Tools


class Interrupted(BangerError):
    """The pass was told to stop; raised at stage boundaries and between chunks of long work."""

    default_code = Code.INTERRUPTED
    default_retryable = True


class Feed:
    """Layer blobs on their way from pull to flatten, which run side by side: a future a digest."""

    def __init__(self, image: PinnedImage) -> None:
        self._blobs: dict[str, Future[Path]] = {
            layer.blob.digest: Future() for layer in image.layers
        }
        self.abandoned = threading.Event()
        """Flatten has failed: nobody takes what is still on its way."""

    def put(self, digest: str, path: Path) -> None:
        """Pull has verified this blob; it lies at `path`. Layers may share a blob."""
        if not self._blobs[digest].done():
            self._blobs[digest].set_result(path)

    def fail(self, error: BaseException) -> None:
        """Pull has failed: whoever waits for a blob that did not come gets the error."""
        for blob in self._blobs.values():
            if not blob.done():
                blob.set_exception(error)

    def is_there(self, digest: str) -> bool:
        """Whether `get` need not wait."""
        return self._blobs[digest].done()

    def get(self, digest: str) -> Path:
        """Wait for one blob. Raises pull's error when it will not come."""
        return self._blobs[digest].result()


@dataclass(slots=True)
class Room:
    """Paths and services of one build. All paths are absolute.

    staging: `<images>/<id>.staging`, becomes the artifact by one rename.
    scratch: the flatten stage's own directory under `$TMPDIR`, named by the flatten key.
    """

    staging: Path
    scratch: Path
    blobs: BlobCache
    sources: Sources
    tools: Tools
    kernels: KernelStore
    emit: Emit
    store: Store
    records: Records
    feed: Feed
    before: Record | None = None
    """The record that the name, or the old name that it takes over, has now."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    give_up: Callable[[], str] = str
    """Why this build is of no use any more; empty while it is."""
    deadline: float = math.inf
    """When the image has to be done, on the monotonic clock."""
    limits: Limits = DEFAULTS
    """What the image may ask for."""
    tree: Tree | None = None
    """The merged tree: flatten sets it; after a resumed flatten `stages.flatten.load` does."""
    modules: tuple[Asset, ...] = ()
    """Those of the kernel, where they go into the rootfs, too: the kernel stage sets them."""
    assets: tuple[Asset, ...] = ()
    """What the guest gets, decided from the image's own tree before any of it goes in."""
    not_carried: list[str] = field(default_factory=list)
    """Lines for people on what of the image could not be kept; they end in manifest and record."""

    @property
    def rootfs(self) -> Path:
        """The filesystem: made by ext4, changed by ownership and guest, final after guest."""
        return self.staging / "rootfs.ext4"

    @property
    def host_tree(self) -> Path:
        """The staging tree of flatten: what `mkfs.ext4 -d` copies."""
        return self.scratch / "tree"

    def checkpoint(self) -> None:
        """Stop here when told to. Raises Interrupted, or HostError when the time is up."""
        if self.cancelled.is_set():
            raise Interrupted("the pass was interrupted")
        if why := self.give_up():
            raise Interrupted(why)
        if time.monotonic() > self.deadline:
            raise HostError(
                "the image was not done in time and was stopped",
                code=Code.TIMEOUT,
                resolution="Raise [reconcile] timeout, or --timeout.",
            )

    def progress(self, stage: str, image: DesiredImage, **fields: object) -> None:
        """Report progress within a stage: `done` and `total` in one `unit`, and of what."""
        self.emit("stage.progress", image=image.spec.name, stage=stage, **fields)
