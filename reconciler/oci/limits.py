"""How much an image may ask of the host before it counts as an attack: `[limits]` in the config.

Used by `oci.compression`, `oci.tar` and `oci.merge`. The defaults lie far above what real images
need, and far below what would hurt a host for long.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import Code, ImageError


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one image; the key in the config is the field's name with dashes.

    layer_bytes: of one layer when decompressed, holes of sparse files included.
    entries: of all layers together. pax_bytes: of the extended headers of one entry.
    """

    layer_bytes: int = 64 << 30
    entries: int = 900_000
    pax_bytes: int = 1 << 20


def exceeded(field: str, limit: int, what: str) -> ImageError:
    """The error for `what`, which has met the limit in `Limits.<field>`."""
    key = f"limits.{field.replace('_', '-')}"
    return ImageError(
        f"{what}: more than {key} = {limit}",
        code=Code.LIMIT_EXCEEDED,
        resolution=f"Raise {key} in the configuration if this image is to be trusted.",
    )
