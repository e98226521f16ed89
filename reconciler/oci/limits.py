"""How much an image may ask of the host before it counts as an attack: `[limits]` in the config.

Used by all of `oci` that reads what others wrote. The defaults lie far above what real images
need, and far below what would hurt a host for long.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import Code, ImageError
from reconciler.sizes import format_size


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one image; the key in the config is the field's name with dashes.

    layer_bytes: of one layer when decompressed, holes of sparse files included.
    entries: of all layers together. pax_bytes: of the extended headers of one entry.
    layers: of one image. document_bytes: of an index, a manifest or a config; the default is what
    registries must accept (distribution specification, "Pushing Manifests").
    archive_entries: of an `oci-archive:` or `docker-archive:` file, which layers are not part of.
    """

    layer_bytes: int = 64 << 30
    entries: int = 900_000
    pax_bytes: int = 1 << 20
    layers: int = 1000
    document_bytes: int = 4 << 20
    archive_entries: int = 100_000


DEFAULTS = Limits()


def exceeded(field: str, limit: int, what: str) -> ImageError:
    """The error for `what`, which has met the limit in `Limits.<field>`."""
    key = f"limits.{field.replace('_', '-')}"
    value = f'"{format_size(limit)}"' if field.endswith("_bytes") else str(limit)
    return ImageError(
        f"{what}: more than {key} = {value}",
        code=Code.LIMIT_EXCEEDED,
        resolution=f"Raise {key} in the configuration if this image is to be trusted.",
    )
