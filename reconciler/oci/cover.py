"""What the newer layers of an image hide of the older ones, told by names alone. Pure.

`stages.replay` reads layers newest first, and asks here whether the content of a file is worth
keeping. Names are taken as they are spelt: where a directory is reached through a symbolic link,
and where a hardlink keeps a file that its own name has lost, only the merge knows. So an answer
may be wrong in either direction, and costs time then: content that is hidden after all is given
back, content that is wanted after all is read again. What the image is, `oci.merge` alone says.
"""

from __future__ import annotations

from reconciler.oci.entries import DIRECTORY, HARDLINK, Header, components

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


class Cover:
    """Layers in, newest first: `add` for each header, then `end_layer`, after which it covers."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()
        self._emptied: set[bytes] = set()
        self._kept: set[bytes] = set()
        self._begin_layer()

    def add(self, header: Header) -> None:
        """An entry of the current layer. It hides nothing in its own layer."""
        path = components(header.path)
        name = path[-1] if path else b""
        if name == _OPAQUE:
            self._now_emptied.add(b"/".join(path[:-1]))
            return
        if name.startswith(_WHITEOUT):
            path[-1] = name.removeprefix(_WHITEOUT)
        elif header.kind is DIRECTORY:
            self._now_taken.add(b"/".join(path))
            return
        elif header.kind is HARDLINK:
            self._kept.add(b"/".join(components(header.target)))
        shown = b"/".join(path)
        self._now_taken.add(shown)
        self._now_emptied.add(shown)

    def end_layer(self) -> None:
        """The layer is complete: the next one to be read lies below it."""
        self._taken |= self._now_taken
        self._emptied |= self._now_emptied
        self._begin_layer()

    def _begin_layer(self) -> None:
        self._now_taken: set[bytes] = set()
        self._now_emptied: set[bytes] = set()
        self._known: dict[bytes, bool] = {b"": b"" in self._emptied}

    def hides(self, path: bytes) -> bool:
        """Whether a file of this path, in a layer below, is most likely not in the image."""
        if not (self._taken or self._emptied):
            return False
        whole = b"/".join(components(path))
        if whole in self._kept:
            return False
        return whole in self._taken or self._is_emptied(whole.rpartition(b"/")[0])

    def _is_emptied(self, directory: bytes) -> bool:
        """Whether all that lower layers have in a directory is gone."""
        todo = []
        while directory not in self._known:
            todo.append(directory)
            directory = directory.rpartition(b"/")[0]
        answer = self._known[directory]
        for below in reversed(todo):
            answer = self._known[below] = answer or below in self._emptied
        return answer
