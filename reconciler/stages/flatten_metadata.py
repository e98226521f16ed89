"""The metadata map of a flattened image: what the staging tree on the host cannot say, in a file.

`stages.flatten` writes it last and reads it back when a build is resumed. It is one JSON document;
names are latin-1 text, which holds any byte. A marker beside it proves that both map and tree were
finished during this boot of the host: what a crash of the machine left half on disk has no marker
of the running kernel, so nothing here has to be synced.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from reconciler.oci.entries import Kind, Node, Tree

METADATA = "metadata"
MARKER = "complete"
_FORMAT = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def save(tree: Tree, scratch: Path) -> None:
    """Write the map and then the marker into `scratch`."""
    document = {"format": _FORMAT, "not_carried": tree.not_carried, "names": _rows(tree)}
    data = json.dumps(document, separators=(",", ":")).encode()
    (scratch / METADATA).write_bytes(data)
    marker = {"boot": _boot_id(), "metadata": hashlib.sha256(data).hexdigest()}
    (scratch / MARKER).write_text(json.dumps(marker))


def load(scratch: Path) -> Tree | None:
    """The tree that `save` wrote during this boot; None when there is none, or it was changed."""
    try:
        marker = json.loads((scratch / MARKER).read_bytes())
        data = (scratch / METADATA).read_bytes()
        if marker != {"boot": _boot_id(), "metadata": hashlib.sha256(data).hexdigest()}:
            return None
        document = json.loads(data)
    except (OSError, ValueError):
        return None
    if document["format"] != _FORMAT:
        return None
    return Tree(_from_rows(document["names"]), document["not_carried"])


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _rows(tree: Tree) -> list[list[Any]]:
    """One row a name: the row of its directory, its last component, and its inode's fields.

    A further name of an inode has the row of the first name in place of the fields.
    """
    rows: list[list[Any]] = []
    directories: dict[bytes, int] = {}
    first: dict[Node, int] = {}
    for path, node in tree.walk():
        directory, _, name = path.rpartition(b"/")
        place = [directories.get(directory, 0), name.decode("latin-1")]
        if node in first:
            rows.append([*place, first[node]])
            continue
        if node.kind is Kind.DIRECTORY:
            directories[path] = len(rows)
        elif node.nlink > 1:
            first[node] = len(rows)
        rows.append(place + _fields(node))
    return rows


def _fields(node: Node) -> list[Any]:
    xattrs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in node.xattrs]
    target = node.target.decode("latin-1")
    owner = [node.mode, node.uid, node.gid, node.mtime_ns]
    return [int(node.kind), *owner, node.size, node.content, target, node.rdev, xattrs, node.nlink]


def _from_rows(rows: list[list[Any]]) -> Node:
    nodes: list[Node] = []
    for row in rows:
        node = nodes[row[2]] if len(row) == 3 else _node(row[2:])
        if nodes:
            nodes[row[0]].children[row[1].encode("latin-1")] = node
        nodes.append(node)
    return nodes[0]


def _node(fields: list[Any]) -> Node:
    kind, mode, uid, gid, mtime_ns, size, content, target, rdev, xattrs, nlink = fields
    return Node(
        Kind(kind),
        mode,
        uid,
        gid,
        mtime_ns,
        size,
        content,
        target.encode("latin-1"),
        (rdev[0], rdev[1]),
        tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in xattrs),
        nlink,
    )
