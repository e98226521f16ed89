"""Stage 1, resolve: a reference becomes one manifest, by digest.

The one stage that runs while observing, since the plan depends on what it finds; hence its
signature differs from the others. `observe` calls it once an image and pass: whatever a tag does
meanwhile, that digest is used throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.model import ImageSpec, PinnedImage

if TYPE_CHECKING:
    from reconciler.oci.source import Sources


def run(spec: ImageSpec, sources: Sources) -> PinnedImage:
    """Pin one entry. Raises ImageError, RemoteError, HostError."""
    return sources.resolve(spec)
