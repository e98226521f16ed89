"""What a tag stood for when it was last asked for, so that a pass can do without asking again.

One small file a reference in the cache. Losing it costs a request; a wrong one cannot change bytes,
since everything is fetched and verified by digest. `oci.source` reads it for `--offline`,
`pull = "never"` and to save the registry a download of a document that the cache holds.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from reconciler.errors import ImageError
from reconciler.files import write_durably
from reconciler.model import Descriptor, canonical
from reconciler.oci.documents import parse_json
from reconciler.oci.reference import check_digest

_LIMIT = 4096


class TagMemory:
    """References (in canonical spelling) to the descriptor of their index or manifest."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def recall(self, reference: str) -> Descriptor | None:
        """What `remember` was last told, or None."""
        try:
            with self._path(reference).open("rb") as handle:
                body = parse_json(handle.read(_LIMIT), "remembered tag")
            media_type, digest, size = body
            if not isinstance(media_type, str) or not isinstance(size, int):
                return None
            return Descriptor(media_type, check_digest(digest), size)
        except (OSError, ImageError, TypeError, ValueError):
            return None

    def remember(self, reference: str, top: Descriptor) -> None:
        """Keep it. A cache that cannot be written costs a request later, nothing else."""
        if self.recall(reference) == top:
            return
        path = self._path(reference)
        raw = canonical([top.media_type, top.digest, top.size]).encode()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, raw)

    def _path(self, reference: str) -> Path:
        return self._root / hashlib.sha256(reference.encode()).hexdigest()
