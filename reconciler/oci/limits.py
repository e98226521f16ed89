"""How much an image may ask of the host before it counts as an attack: `[limits]` in the config.

Used by all of `oci` that reads what others wrote. The defaults lie far above what real images
need, and far below what would hurt a host for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reconciler.errors import Code, ImageError

if TYPE_CHECKING:
    from reconciler.oci.entries import Header


class Limits(NamedTuple):  # not a dataclass: processes that read it have to start fast
    """The limits of one image; the key in the config is the field's name with dashes.

    layers: of one image. layer_bytes: of one layer when decompressed, holes of sparse files
    included. zstd_window: bytes of memory that a zstd frame may ask for. entries: of all layers
    together, and parents that no entry describes. metadata_bytes: of paths, link targets and
    extended attributes of all layers together; what is kept of them is kept in memory.
    directory_entries: names in one directory of the merged tree, which mke2fs fills in a time that
    grows with their square. pax_bytes: of the extended headers of one entry. document_bytes: of an
    index, a manifest or a config; the default is what registries must accept (distribution
    specification, "Pushing Manifests"). archive_entries: of an `oci-archive:` or `docker-archive:`
    file, which layers are not part of.
    """

    layers: int = 1000
    layer_bytes: int = 64 << 30
    zstd_window: int = 128 << 20
    entries: int = 900_000
    metadata_bytes: int = 256 << 20
    directory_entries: int = 100_000
    pax_bytes: int = 1 << 20
    document_bytes: int = 4 << 20
    archive_entries: int = 100_000


DEFAULTS = Limits()


def exceeded(field: str, limit: int, what: str) -> ImageError:
    """The error for `what`, which has met the limit in `Limits.<field>`."""
    from reconciler.sizes import format_size  # noqa: PLC0415 - a child that decompresses starts faster

    key = f"limits.{field.replace('_', '-')}"
    value = f'"{format_size(limit)}"' if field.endswith("_bytes") else str(limit)
    return ImageError(
        f"{what}: more than {key} = {value}",
        code=Code.LIMIT_EXCEEDED,
        resolution=f"Raise {key} in the configuration if this image is to be trusted.",
    )


class Budget:
    """What the headers of an image take of the host's memory, whether or not they last."""

    def __init__(self, limits: Limits) -> None:
        self._entries_left = limits.entries
        self._bytes_left = limits.metadata_bytes
        self._limits = limits

    def add(self, header: Header) -> None:
        """Count one header. Raises ImageError LIMIT_EXCEEDED."""
        entries = self._entries_left = self._entries_left - 1
        size = self._bytes_left - len(header.path) - len(header.target)
        if header.xattrs:
            size -= sum(len(name) + len(value) for name, value in header.xattrs)
        self._bytes_left = size
        if entries < 0 or size < 0:
            self._refuse()

    def add_entry(self) -> None:
        """Count an entry that no header describes."""
        self._entries_left -= 1
        if self._entries_left < 0:
            self._refuse()

    def _refuse(self) -> None:
        if self._entries_left < 0:
            raise exceeded("entries", self._limits.entries, "entries and their parents")
        what = "names, targets and attributes"
        raise exceeded("metadata_bytes", self._limits.metadata_bytes, what)
