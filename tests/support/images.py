"""Images made by hand: OCI layout directories out of raw tar bytes, and a way to push them.

    layers = [LayerBytes(tar(file("etc/hostname", b"guest\n"))), LayerBytes(upper, "zstd")]
    digest = make_layout(tmp_path / "hello", layers, tag="1.0")
    push(tmp_path / "hello", registry, "team/hello", "1.0", source_tag="1.0")

Nothing here checks what it writes: tests use it for wrong images, too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from support.registry import RunningRegistry

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TYPES = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "none": "application/vnd.oci.image.layer.v1.tar",
}


@dataclass(frozen=True)
class LayerBytes:
    """One layer: a tar stream, and how it travels. `compression` None takes the image's."""

    tar: bytes
    compression: str | None = None


Entry = tuple[tarfile.TarInfo, bytes]


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def compress(raw: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(raw, mtime=0)
    return zstd.compress(raw) if compression == "zstd" else raw


def file(
    path: str, content: bytes = b"", mode: int = 0o644, **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """One regular file for `tar`; fields are those of TarInfo."""
    return entry(path, tarfile.REGTYPE, content, mode=mode, **fields)


def directory(path: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(path, tarfile.DIRTYPE, mode=mode, **fields)


def symlink(path: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(path, tarfile.SYMTYPE, linkname=target, mode=0o777)


def entry(
    path: str, kind: bytes, content: bytes = b"", **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """Any entry: `kind` is a type flag of tarfile."""
    info = tarfile.TarInfo(path)
    info.type, info.size, info.mtime = kind, len(content), 1_700_000_000
    for name, value in fields.items():
        setattr(info, name, value)
    return info, content


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar stream of well-formed entries, in order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_blob(layout: Path, raw: bytes, media_type: str) -> dict[str, Any]:
    """Store a blob in a layout; returns its descriptor."""
    digest = digest_of(raw)
    path = layout / "blobs" / "sha256" / digest.partition(":")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return {"mediaType": media_type, "digest": digest, "size": len(raw)}


def write_json(layout: Path, value: Any, media_type: str) -> dict[str, Any]:
    return write_blob(layout, json.dumps(value).encode(), media_type)


def write_index(layout: Path, descriptors: Iterable[dict[str, Any]]) -> None:
    """The layout's two fixed files."""
    layout.mkdir(parents=True, exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(descriptors)}
    (layout / "index.json").write_text(json.dumps(index))


def tagged(descriptor: dict[str, Any], tag: str | None) -> dict[str, Any]:
    notes = {"org.opencontainers.image.ref.name": tag}
    return {**descriptor, "annotations": notes} if tag else descriptor


def add_image(
    layout: Path,
    layers: Sequence[LayerBytes | bytes],
    *,
    config: dict[str, Any] | None = None,
    platform: tuple[str, str] = ("linux", "amd64"),
    compression: str = "gzip",
) -> dict[str, Any]:
    """Write the blobs of one image, without naming it in index.json; returns its descriptor.

    config: the runtime part (Env, Cmd, ...).
    """
    whole = [layer if isinstance(layer, LayerBytes) else LayerBytes(layer) for layer in layers]
    blobs = []
    for layer in whole:
        how = layer.compression or compression
        blobs.append(write_blob(layout, compress(layer.tar, how), LAYER_TYPES[how]))
    document = {
        "os": platform[0],
        "architecture": platform[1],
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer.tar) for layer in whole]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": write_json(layout, document, OCI_CONFIG),
        "layers": blobs,
    }
    where = {"os": platform[0], "architecture": platform[1]}
    return {**write_json(layout, manifest, OCI_MANIFEST), "platform": where}


def make_layout(
    directory: Path,
    layers: Sequence[LayerBytes | bytes],
    *,
    tag: str | None = "latest",
    config: dict[str, Any] | None = None,
    platform: tuple[str, str] = ("linux", "amd64"),
    compression: str = "gzip",
) -> str:
    """A layout with one image, oldest layer first. Returns the digest of its manifest."""
    descriptor = add_image(
        directory, layers, config=config, platform=platform, compression=compression
    )
    write_index(directory, [tagged(descriptor, tag)])
    return str(descriptor["digest"])


def push(
    layout: Path,
    registry: RunningRegistry,
    repository: str,
    tag: str,
    *,
    source_tag: str = "latest",
) -> None:
    """Push an image of a layout, all platforms of it, as it is: digests stay."""
    target = f"docker://{registry.host}/{repository}:{tag}"
    login = (
        ["--dest-creds", f"{registry.username}:{registry.password}"] if registry.username else []
    )
    options = ["--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false", *login]
    subprocess.run(
        ["skopeo", "copy", *options, f"oci:{layout}:{source_tag}", target],
        check=True,
        capture_output=True,
    )
