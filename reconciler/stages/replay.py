"""All layers of an image, oldest first, into one tree: the loop that both builders share.

`stages.flatten` keeps each content in a spool, `direct.builder` in blocks of the image; this module
reads the layers, merges the headers, and reports how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

from reconciler.hot import hot_loop
from reconciler.model import DesiredImage
from reconciler.oci.entries import Tree
from reconciler.oci.layers import layer_name, read_layer
from reconciler.oci.merge import Merge
from reconciler.oci.tar import Payload
from reconciler.room import Room

_PROGRESS_SECONDS = 0.1


class Sink(Protocol):
    """Where content goes."""

    def add(self, serial: int, size: int, payload: Payload) -> None:
        """Store the content with this serial, of so many bytes when expanded."""

    def flush(self) -> None:
        """Bytes that `add` was given vanish after this."""


def replay(image: DesiredImage, room: Room, open_sink: Callable[[], Sink]) -> Tree:
    """The merged tree; the sink gets the content of every file that an entry brought.

    open_sink: called once, when the first layer is being unpacked already. Raises what the layers,
    the sink and `room.checkpoint` raise.
    """
    sink: Sink | None = None
    merge = Merge(room.limits)
    serials = count(1)
    progress = _Progress(image, room)

    def turn(position: int) -> None:
        room.checkpoint()
        if sink:
            sink.flush()
        progress.report(position)

    layers = image.pinned.layers
    for index, layer in enumerate(layers, 1):
        name = layer_name(index, len(layers), layer)
        blob = room.feed.get(layer.blob.digest)
        merge.begin_layer(name)
        with hot_loop(), read_layer(blob, layer, name, room.limits, serials, turn=turn) as entries:
            sink = sink or open_sink()
            for header, payload in entries:
                if merge.add(header) and header.content:
                    sink.add(header.content, header.size, payload)
        merge.end_layer()
        progress.finish_layer(layer.blob.size)
    if sink is None:
        open_sink()
    with hot_loop():
        return merge.finish()


class _Progress:
    """Compressed bytes replayed so far, told at most ten times a second."""

    def __init__(self, image: DesiredImage, room: Room) -> None:
        self._image = image
        self._room = room
        self._total = sum(layer.blob.size for layer in image.pinned.layers)
        self._before = 0
        self._next = 0.0

    def report(self, position: int) -> None:
        """The current layer has been read up to `position`."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            done = self._before + position
            fields = {"done": done, "total": self._total, "unit": "bytes"}
            self._room.progress("flatten", self._image, **fields)

    def finish_layer(self, size: int) -> None:
        """A layer of `size` bytes is complete."""
        self._before += size
        self._next = 0.0
        self.report(0)
