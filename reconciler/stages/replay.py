"""All layers of an image into one tree: the loop that both builders share.

`stages.flatten` keeps each content in a spool, `direct.builder` in blocks of the image; this module
reads the layers, merges the headers, and reports how far it is. Layers are read newest first, so
that content which a newer one hides need not be stored, and merged oldest first, as the image
specification has it. What `oci.cover` took for hidden and the merge did not is read again: seldom,
since that takes a hardlink to a name that a newer layer removes, or links among directories.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from typing import Protocol

from reconciler.hot import hot_loop
from reconciler.model import DesiredImage
from reconciler.oci.cover import Cover
from reconciler.oci.entries import Header, Node, Tree
from reconciler.oci.item import Item, prepare
from reconciler.oci.layers import OpenLayer, layer_name
from reconciler.oci.limits import Budget
from reconciler.oci.merge import Merge
from reconciler.oci.tar import Payload
from reconciler.room import Room

_PROGRESS_SECONDS = 0.1


class Sink(Protocol):
    """Where content goes."""

    def add(self, node: Node, payload: Payload) -> None:
        """Store the content of a file: `node` has its serial, and its size when expanded."""

    def flush(self) -> None:
        """Bytes that `add` was given vanish after this."""

    def settle(self) -> None:
        """All layers have been read: what waits for time has it now."""

    def finish(self, serials: set[int]) -> None:
        """All is there, and the tree has content with these serials."""


def replay(image: DesiredImage, room: Room, open_sink: Callable[[], Sink]) -> Tree:
    """The merged tree; the sink has the content of every file in it, and of few others.

    open_sink: called once, when the first layer is being unpacked already. Raises what the layers,
    the sink and `room.checkpoint` raise.
    """
    with closing(_Replay(image, room, open_sink)) as work:
        return work.run()


class _Replay:
    """One image. Layers are numbered from 1, the oldest, as errors number them."""

    def __init__(self, image: DesiredImage, room: Room, open_sink: Callable[[], Sink]) -> None:
        self._room = room
        self._layers = image.pinned.layers
        self._open_sink = open_sink
        self._sink: Sink | None = None
        self._cover = Cover()
        self._first: dict[int, int] = {}
        """The first serial of each layer: the older the layer, the higher."""
        self._next = 1
        self._passed_over: set[int] = set()
        self._ahead: dict[int, OpenLayer] = {}
        self._progress = _Progress(image, room)

    def close(self) -> None:
        """End what is being unpacked."""
        for opened in self._ahead.values():
            opened.close()

    def run(self) -> Tree:
        merge = Merge(self._room.limits)
        held = self._hold_newer(merge.budget)
        if self._layers:
            merge.begin_layer(self._name(1))

            def place(header: Header) -> Node | None:
                item = prepare(header, merge.budget)
                return self._shown(item) if merge.place(item) else None

            self._read(1, place)
            merge.end_layer()
        sink = self._sink or self._open_sink()
        sink.settle()
        with hot_loop():
            while held:
                self._room.checkpoint()
                merge.begin_layer(self._name(len(self._layers) - len(held) + 1))
                merge.place_all(held.pop())
                merge.end_layer()
            tree = merge.finish()
        contents = {node.content for node in tree.nodes()}
        if missing := self._passed_over & contents:
            self._read_again(tree, missing)
        sink.finish(contents)
        return tree

    def _hold_newer(self, budget: Budget) -> list[list[Item]]:
        """The entries of all layers but the oldest: nothing can be merged before that is read."""
        held: list[list[Item]] = []

        def hold(header: Header) -> Node | None:
            item = prepare(header, budget)
            held[-1].append(item)
            self._cover.add(item)
            return self._shown(item)

        for number in range(len(self._layers), 1, -1):
            held.append([])
            self._read(number, hold)
            self._cover.end_layer()
        return held

    def _shown(self, item: Item) -> Node | None:
        """The file that an entry is, when it has content and no newer layer seems to hide it."""
        node = item.node
        if node is None or not node.content:
            return None
        if self._cover.hides(item):
            self._passed_over.add(node.content)
            return None
        return node

    def _read_again(self, tree: Tree, serials: set[int]) -> None:
        """Store what is in the tree after all of what was passed over."""
        missing = {node.content: node for node in tree.nodes() if node.content in serials}
        for number in range(1, len(self._layers) + 1):
            first = self._first[number]
            here = {serial: node for serial, node in missing.items() if serial >= first}
            missing = {serial: node for serial, node in missing.items() if serial < first}
            if here:
                self._progress.extend(self._layers[number - 1].blob.size)
                self._read(number, _of_serial(here))

    def _read(self, number: int, wanted: Callable[[Header], Node | None]) -> None:
        """Read a layer, which verifies it; the sink gets the content of the files wanted."""
        serials = count(self._first.setdefault(number, self._next))
        begun = self._ahead.pop(number) if number in self._ahead else self._open(number)
        with closing(begun) as opened:
            self._open_ahead(number - 1)
            with hot_loop(), opened.read(serials, turn=self._turn) as entries:
                sink = self._sink = self._sink or self._open_sink()
                for header, payload in entries:
                    node = wanted(header)
                    if node is not None:
                        sink.add(node, payload)
        self._next = max(self._next, next(serials))
        self._progress.finish_layer(self._layers[number - 1].blob.size)

    def _open(self, number: int) -> OpenLayer:
        layer = self._layers[number - 1]
        blob = self._room.feed.get(layer.blob.digest)
        return OpenLayer(blob, layer, self._name(number), self._room.limits)

    def _open_ahead(self, number: int) -> None:
        """Unpack the beginning of the layer that comes next, unless that is being fetched yet."""
        is_next = number > 0 and number not in self._first
        if is_next and self._room.feed.is_there(self._layers[number - 1].blob.digest):
            self._ahead[number] = self._open(number)

    def _turn(self, position: int) -> None:
        self._room.checkpoint()
        if self._sink:
            self._sink.flush()
        self._progress.report(position)

    def _name(self, number: int) -> str:
        return layer_name(number, len(self._layers), self._layers[number - 1])


def _of_serial(nodes: dict[int, Node]) -> Callable[[Header], Node | None]:
    return lambda header: nodes.get(header.content)


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

    def extend(self, size: int) -> None:
        """So many bytes more than the image has will be read."""
        self._total += size
