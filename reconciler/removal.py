"""A large tree removed by a process of its own, while the pass goes on.

`pipeline` has the staging tree removed so: to unlink its files takes as long as giving the new
filesystem its owners, and a thread for it would hold that up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconciler.errors import HostError
from reconciler.files import remove_tree
from reconciler.processes import Companion, can_start


@contextmanager
def removing(path: Path) -> Iterator[None]:
    """Remove `path` beside the body of the `with`, as far as that comes: see `remove_tree`.

    Something may be left of it at the end. Raises nothing: whoever needs it gone looks.
    """
    child = None
    if can_start():
        with suppress(HostError):
            child = Companion(__name__, [str(path)])
    try:
        yield
        if child:
            child.end()
    finally:
        if child:
            child.kill()


def main(words: list[str]) -> None:
    """The process: remove the tree that it is told."""
    try:
        remove_tree(Path(words[0]))
    except OSError:
        sys.exit(1)
