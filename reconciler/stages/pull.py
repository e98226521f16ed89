"""Stage 2, pull: the layers of one image, verified, into the blob cache; several at a time.

Flatten runs beside it and takes each blob from `room.feed` as soon as it is there, newest first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from reconciler.model import Descriptor, DesiredImage
from reconciler.room import Interrupted, Room

THREADS = 4
"""Layers at a time: more do not make a registry faster, and it may take offence."""
_REPORT_SECONDS = 0.1


def run(image: DesiredImage, room: Room) -> None:
    """Fetch what is missing. Raises the first error of any layer; the feed gets it too."""
    blobs = {layer.blob.digest: layer.blob for layer in reversed(image.pinned.layers)}.values()
    failed = threading.Event()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="layer") as pool:
        try:
            layers = [pool.submit(_fetch, blob, image, room, failed) for blob in blobs]
            for layer in as_completed(layers):
                layer.result()
        except BaseException as error:
            failed.set()
            room.feed.fail(error)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(blob: Descriptor, image: DesiredImage, room: Room, failed: threading.Event) -> None:
    report = _reporter(blob, image, room)

    def progress(done: int) -> None:
        room.checkpoint()
        if failed.is_set() or room.feed.abandoned.is_set():
            raise Interrupted("another layer of the image has failed")
        report(done)

    progress(0)
    room.feed.put(blob.digest, room.sources.fetch(image.spec, blob, progress))


def _reporter(blob: Descriptor, image: DesiredImage, room: Room) -> Callable[[int], None]:
    """Reports at most ten times a second, and the end always."""
    last = float("-inf")

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == blob.size:
            last = now
            total = blob.size
            room.progress("pull", image, layer=blob.digest, done=done, total=total, unit="bytes")

    return report
