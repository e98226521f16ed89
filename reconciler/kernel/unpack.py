"""Kernels that travel as OCI images, and single files out of such images.

`origins` asks for them. Layers are read twice: once for their headers, whose merge says what the
image holds and where its links lead, and once for the content of the few files that are wanted.
Nothing is written under a name from the image but modules, into a new directory and past no link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from reconciler.files import host_errors
from reconciler.guest.inits import find
from reconciler.kernel.files import RELEASE
from reconciler.kernel.parts import KERNEL, MODULES, invalid
from reconciler.model import ImageSpec, Layer, PinnedImage, Platform
from reconciler.oci.blobs import BlobCache
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.oci.layers import LayerMismatch, layer_name, read_layer
from reconciler.oci.limits import DEFAULTS, Limits
from reconciler.oci.merge import Merge
from reconciler.oci.reference import parse_reference
from reconciler.oci.source import Sources
from reconciler.oci.tar import Payload
from reconciler.processes import Checkpoint, never
from reconciler.text import printable

_LARGEST = 1 << 30
_PLAIN = (b"boot/vmlinux", b"boot/vmlinuz")
_VERSIONED = re.compile(rb"vmlinu[xz]-([0-9][!-~]*)")
_NUMBER = re.compile(rb"[0-9]+")

Wanted = dict[Path, Node]
"""Where each node goes, relative and parents first."""


@dataclass(frozen=True, slots=True)
class KernelImages:
    """Reads kernels out of images. checkpoint: called while it works, and may end it."""

    sources: Sources
    blobs: BlobCache
    limits: Limits = DEFAULTS
    checkpoint: Checkpoint = never

    def pin(self, name: str, ref: str, platform: Platform) -> PinnedImage:
        """What a reference stands for now. Raises what `Sources.resolve` does."""
        return self.sources.resolve(_spec(name, ref, platform))

    def is_local(self, ref: str, pinned: PinnedImage) -> bool:
        """Whether it can be unpacked without asking a registry."""
        return bool(parse_reference(ref).path) or all(
            self.blobs.has(layer.blob) for layer in pinned.layers
        )

    def unpack(self, name: str, ref: str, pinned: PinnedImage, pick: Pick, target: Path) -> None:
        """Write what `pick` finds in the image below `target`, a new directory.

        A cached blob that turns out to be damaged is put aside and fetched again, once. Raises
        ImageError, RemoteError, HostError, and what the checkpoint raises.
        """
        try:
            self._unpack(name, ref, pinned, pick, target)
        except LayerMismatch as error:
            self.blobs.quarantine(error.blob)
            self._unpack(name, ref, pinned, pick, target)

    def _unpack(self, name: str, ref: str, pinned: PinnedImage, pick: Pick, target: Path) -> None:
        spec = _spec(name, ref, pinned.platform)
        blobs = [self.sources.fetch(spec, x.blob, self._progress) for x in pinned.layers]
        layers = list(zip(pinned.layers, blobs, strict=True))
        wanted = pick(self._merge(layers))
        with host_errors(f"kernel {name} cannot be unpacked"):
            target.mkdir(parents=True, exist_ok=True)
            self._write(layers, wanted, target)

    def _progress(self, done: int) -> None:
        self.checkpoint()

    def _merge(self, layers: list[tuple[Layer, Path]]) -> Tree:
        merge, serials = Merge(self.limits), count(1)
        for index, (layer, blob) in enumerate(layers, 1):
            name = layer_name(index, len(layers), layer)
            merge.begin_layer(name)
            with read_layer(
                blob, layer, name, self.limits, serials, turn=self._progress
            ) as entries:
                for header, _ in entries:
                    merge.add(header)
            merge.end_layer()
        return merge.finish()

    def _write(self, layers: list[tuple[Layer, Path]], wanted: Wanted, target: Path) -> None:
        by_serial: dict[int, list[Path]] = {}
        for path, node in wanted.items():
            if node.size > _LARGEST:
                raise invalid(f"{printable(str(path))} is larger than 1 GiB", "Give another.")
            if node.kind is Kind.DIRECTORY:
                (target / path).mkdir(exist_ok=True)
            elif node.kind is Kind.SYMLINK:
                (target / path).symlink_to(os.fsdecode(node.target))
            elif node.content:
                by_serial.setdefault(node.content, []).append(target / path)
            else:
                (target / path).touch()
        serials = count(1)  # the same numbers as in the first reading
        for index, (layer, blob) in enumerate(layers, 1):
            name = layer_name(index, len(layers), layer)
            with read_layer(
                blob, layer, name, self.limits, serials, turn=self._progress
            ) as entries:
                for header, payload in entries:
                    places = by_serial.get(header.content, ()) if header.content else ()
                    if places:
                        _write_all(places, payload)


Pick = Callable[[Tree], Wanted]
"""Chooses what of an image is wanted. Raises ImageError when it is not there."""


def pick_kernel(tree: Tree) -> Wanted:
    """A kernel image: /boot/vmlinux or vmlinuz, and /lib/modules where there is one."""
    node = _kernel(tree)
    if node is None:
        raise invalid("there is no /boot/vmlinux or /boot/vmlinuz in the image", _ADVICE)
    found = (find(tree, path) for path in (b"lib/modules", b"usr/lib/modules"))
    modules = next((one for one in found if one and one.kind is Kind.DIRECTORY), None)
    return {Path(KERNEL): node, **(_below(Path(MODULES), modules) if modules else {})}


def pick_path(path: str, part: str) -> Pick:
    """One file or, for modules, one directory, by its path in the image; called like `part`."""

    def pick(tree: Tree) -> Wanted:
        node = find(tree, os.fsencode(path))
        wanted = Kind.DIRECTORY if part == MODULES else Kind.REGULAR
        if node is None or node.kind is not wanted:
            what = "directory" if part == MODULES else "file"
            raise invalid(f"there is no {what} {printable(path)} in the image", "Correct `file`.")
        if part != MODULES:
            return {Path(part): node}
        release = Path(path).name
        inside = Path(part, release) if RELEASE.fullmatch(release) else Path(part)
        return {Path(part): node, **_below(inside, node)}

    return pick


_ADVICE = "Name the file: kernel = { image = ..., file = ... }."


def _spec(name: str, ref: str, platform: Platform) -> ImageSpec:
    return ImageSpec(name, ref, None, platform=platform)


def _kernel(tree: Tree) -> Node | None:
    """By its plain name, or of several releases the newest."""
    plain = (find(tree, path) for path in _PLAIN)
    for node in plain:
        if node is not None and node.kind is Kind.REGULAR:
            return node
    boot = find(tree, b"boot")
    found = [
        ([int(number) for number in _NUMBER.findall(match[1])], name)
        for name in (boot.children if boot else ())
        if (match := _VERSIONED.fullmatch(name))
    ]
    node = find(tree, b"boot/" + max(found)[1]) if found else None
    return node if node is not None and node.kind is Kind.REGULAR else None


def _below(path: Path, node: Node) -> Wanted:
    """A directory and all that is in it, parents first; devices and the like are left out."""
    found, todo = {path: node}, [(path, node)]
    while todo:
        place, directory = todo.pop()
        for name, child in directory.children.items():
            if child.kind in (Kind.DIRECTORY, Kind.REGULAR, Kind.SYMLINK):
                found[place / os.fsdecode(name)] = child
                if child.kind is Kind.DIRECTORY:
                    todo.append((place / os.fsdecode(name), child))
    return found


def _write_all(places: list[Path], payload: Payload) -> None:
    """A payload into a new file, and copies of it for its other names. A number is a hole."""
    first, *others = places
    with first.open("xb") as stream:
        for piece in payload:
            if isinstance(piece, int):
                stream.seek(piece, os.SEEK_CUR)
            else:
                stream.write(piece)
        stream.truncate()
    for other in others:
        other.write_bytes(first.read_bytes())
