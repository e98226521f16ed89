"""examples/hello: the committed layout is what its script makes, and what the example needs."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HELLO = ROOT / "examples/hello"


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_the_script_makes_the_committed_bytes(tmp_path: Path) -> None:
    script = ROOT / "contrib/make-hello-image.py"
    subprocess.run([sys.executable, "-I", script, tmp_path / "hello"], check=True)
    assert contents(tmp_path / "hello") == contents(HELLO)


def test_every_blob_is_what_its_name_says_and_none_is_left_over() -> None:
    blobs = {path.name: path.read_bytes() for path in (HELLO / "blobs/sha256").iterdir()}
    for name, raw in blobs.items():
        assert hashlib.sha256(raw).hexdigest() == name

    def blob(descriptor: dict[str, str]) -> bytes:
        return blobs[descriptor["digest"].removeprefix("sha256:")]

    (pinned,) = json.loads((HELLO / "index.json").read_bytes())["manifests"]
    manifest = json.loads(blob(pinned))
    config = json.loads(blob(manifest["config"]))
    packed, plain = (blob(layer) for layer in manifest["layers"])
    assert [gzip.decompress(packed), plain] == [
        next(raw for raw in (gzip.decompress(packed), plain) if digest(raw) == diff_id)
        for diff_id in config["rootfs"]["diff_ids"]
    ]
    assert len(blobs) == 4


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
