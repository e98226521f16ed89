from pathlib import Path

import pytest
from support.images import file, make_layout, tar

from reconciler.errors import ImageError
from reconciler.model import ImageSpec
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources
from reconciler.stages import resolve


def test_an_entry_is_pinned_by_digest(tmp_path: Path) -> None:
    digest = make_layout(tmp_path / "l", [tar(file("a"))], tag="1")
    with Sources((), BlobCache(tmp_path / "c"), lambda *_, **__: None) as sources:
        pinned = resolve.run(ImageSpec("x", f"oci:{tmp_path}/l:1", None), sources)
        assert pinned.digest == digest
        assert len(pinned.layers) == 1
        with pytest.raises(ImageError, match="no such tag: 2"):
            resolve.run(ImageSpec("x", f"oci:{tmp_path}/l:2", None), sources)
