"""What the newer layers of an image hide of the older ones, told by names alone. Pure.

`stages.replay` reads layers newest first, and asks here whether the content of a file is worth
keeping. Names are taken as they are spelt: where a directory is reached through a symbolic link,
and where a hardlink keeps a file that its own name has lost, only the merge knows. So an answer
may be wrong in either direction, and costs time then: content that is hidden after all is given
back, content that is wanted after all is read again. What the image is, `oci.merge` alone says.
"""

from __future__ import annotations

from reconciler.oci.entries import DIRECTORY, components
from reconciler.oci.item import WHITEOUT, Item

_OPAQUE = b".wh..wh..opq"

_Names = dict[bytes, dict[bytes, bool]]
"""By directory: the names in it that are taken, and whether what older layers have below goes."""


class Cover:
    """Layers in, newest first: `add` for each entry, then `end_layer`, after which it covers."""

    def __init__(self) -> None:
        self._taken: _Names = {}
        self._opaque: set[bytes] = set()
        self._linked: set[bytes] = set()
        self._spelt: dict[bytes, bytes] = {}
        self._begin_layer()

    def _begin_layer(self) -> None:
        self._now_taken: _Names = {}
        self._now_opaque: set[bytes] = set()
        self._known = {b"": b"" in self._opaque}

    def add(self, item: Item) -> None:
        """An entry of the current layer. It hides nothing in its own layer."""
        directory, name, node, target = item
        where = self._spelt.get(directory) or self._spell(directory)
        if node is None:
            if name == _OPAQUE:
                self._now_opaque.add(where)
                return
            if target:
                self._linked.add(b"/".join(components(target)))
            else:
                name = name.removeprefix(WHITEOUT)
        names = self._now_taken.get(where)
        if names is None:
            names = self._now_taken[where] = {}
        if node is not None and node.kind is DIRECTORY:
            names.setdefault(name, False)
        else:
            names[name] = True

    def end_layer(self) -> None:
        """The layer is complete: the next one to be read lies below it."""
        for directory, names in self._now_taken.items():
            for name, empties in self._taken.get(directory, {}).items():
                names[name] = empties or names.get(name, False)
        self._taken |= self._now_taken
        self._opaque |= self._now_opaque
        self._begin_layer()

    def hides(self, item: Item) -> bool:
        """Whether a file in a layer below is most likely not in the image."""
        if not (self._taken or self._opaque):
            return False
        where = self._spelt.get(item.directory) or self._spell(item.directory)
        if item.name in self._taken.get(where, ()) or self._is_emptied(where):
            return (where + b"/" + item.name if where else item.name) not in self._linked
        return False

    def _spell(self, directory: bytes) -> bytes:
        spelt = self._spelt[directory] = b"/".join(components(directory))
        return spelt

    def _is_emptied(self, directory: bytes) -> bool:
        """Whether all that older layers have in a directory is gone."""
        below = []
        while directory not in self._known:
            below.append(directory)
            directory = directory.rpartition(b"/")[0]
        is_gone = self._known[directory]
        for directory in reversed(below):
            parent, _, name = directory.rpartition(b"/")
            is_gone |= self._taken.get(parent, {}).get(name, False) or directory in self._opaque
            self._known[directory] = is_gone
        return is_gone
