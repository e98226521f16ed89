"""Rows 41 to 53: what travels, and the documents that name it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.images import (
    LAYER_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    LayerBytes,
    add_image,
    digest_of,
    make_layout,
    tagged,
    write_blob,
    write_index,
    write_json,
)
from support.tarball import END, entry, header, pax_header, tar

from hostile.case import Case, Make, d, f, stack
from reconciler.errors import Code

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SMALL = tar(f("a", b"a" * 600), d("b"))
PLAIN = tar(f("a", b"a" * 600), f("big", random.Random(1).randbytes(300_000)), d("b"))
HELD = {"": 0o755, "a": b"a" * 600, "big": random.Random(1).randbytes(300_000), "b": 0o755}
SKIPPABLE = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 9) + b"chunk-toc"
HALF = len(PLAIN) // 2
ESTARGZ_END = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x04\0SG\0\0\x03\0" + bytes(8)
_LIMIT = Code.LIMIT_EXCEEDED


def travels(blob: bytes, stream: bytes, called: str = "gzip") -> Make:
    """One layer whose blob is given beside the tar stream that its diff_id names."""

    def make(layout: Path, outside: str) -> None:
        layers = [write_blob(layout, blob, LAYER_TYPES[called])]
        _write(layout, layers, [digest_of(stream)])

    return make


def _write(layout: Path, layers: list[dict[str, Any]], diff_ids: list[str], **over: Any) -> None:
    document = {"os": "linux", "architecture": "amd64"}
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}  # type: ignore[assignment]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": write_json(layout, document, OCI_CONFIG),
        "layers": layers,
        **over,
    }
    write_index(layout, [tagged(write_json(layout, manifest, OCI_MANIFEST), "latest")])


def spelt(change: Callable[[dict[str, Any]], Any], what: str = "manifest") -> Make:
    """A good image whose manifest, config or index is changed; a str is its text as it is."""

    def make(layout: Path, outside: str) -> None:
        descriptor = add_image(layout, [SMALL])
        manifest = _load(layout, descriptor)
        if what == "config":
            new = change(_load(layout, manifest["config"]))
            manifest["config"] = write_blob(layout, _bytes(new), OCI_CONFIG)
        if what == "manifest":
            manifest = change(manifest)
        descriptor = {**descriptor, **write_blob(layout, _bytes(manifest), OCI_MANIFEST)}
        write_index(layout, [tagged(descriptor, "latest")])
        if what == "index":
            index = json.loads((layout / "index.json").read_text())
            (layout / "index.json").write_bytes(_bytes(change(index)))

    return make


def _load(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    path = layout / "blobs" / descriptor["digest"].replace(":", "/")
    found = json.loads(path.read_bytes())
    assert isinstance(found, dict)
    return found


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def layer(**over: Any) -> Make:
    """A manifest whose one layer has other fields."""
    return spelt(lambda m: {**m, "layers": [{**m["layers"][0], **over}]})


def nested(depth: int) -> Make:
    """Indexes in indexes, `depth` of them, below that of the layout."""

    def make(layout: Path, outside: str) -> None:
        child = add_image(layout, [SMALL])
        for _ in range(depth):
            body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}
            child = {**write_json(layout, body, OCI_INDEX), "platform": child["platform"]}
        write_index(layout, [tagged(child, "latest")])

    return make


def attested(*, only: bool) -> Make:
    """An index with an attestation that claims the platform, and perhaps an image beside it."""

    def make(layout: Path, outside: str) -> None:
        image = add_image(layout, [SMALL])
        note = {"vnd.docker.reference.type": "attestation-manifest"}
        false = {**add_image(layout, [tar(f("attestation"))]), "annotations": note}
        children = [false] if only else [false, image]
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
        write_index(layout, [tagged(write_json(layout, body, OCI_INDEX), "latest")])

    return make


def damaged(change: Callable[[bytes], bytes]) -> Make:
    """A layout whose layer is not what its digest says."""

    def make(layout: Path, outside: str) -> None:
        make_layout(layout, [SMALL], compression="none")
        path = layout / "blobs/sha256" / digest_of(SMALL)[7:]
        path.write_bytes(change(path.read_bytes()))

    return make


def wide_window() -> bytes:
    """A zstd frame that asks for a window of 2 GiB."""
    options = {
        int(zstd.CompressionParameter.window_log): 31,
        int(zstd.CompressionParameter.enable_long_distance_matching): 1,
    }
    packer = zstd.ZstdCompressor(options=options)
    return packer.compress(os.urandom(1 << 16), packer.FLUSH_BLOCK) + packer.flush()


def sparse(size: int) -> bytes:
    """A file of holes."""
    pax = {"GNU.sparse.size": str(size), "GNU.sparse.map": "", "GNU.sparse.name": "holes"}
    return entry("x", pax=pax)


_GZIP, _ZSTD = gzip.compress(PLAIN, mtime=0), zstd.compress(PLAIN)
_MEMBERS = b"".join(gzip.compress(part, mtime=0) for part in (PLAIN[:HALF], b"", PLAIN[HALF:]))
_FRAMES = SKIPPABLE + zstd.compress(PLAIN[:HALF]) + SKIPPABLE + zstd.compress(PLAIN[HALF:])
_NO_ZSTD = "umoci reads no zstd, or only the first frame"

STREAMS = [
    Case("41-plain", travels(PLAIN, PLAIN, "none"), holds=HELD),
    Case("41-members", travels(_MEMBERS, PLAIN), holds=HELD),
    Case("41-estargz", travels(_MEMBERS + ESTARGZ_END, PLAIN), holds=HELD),
    Case("41-frames", travels(_FRAMES + SKIPPABLE, PLAIN, "zstd"), holds=HELD, peer=_NO_ZSTD),
    Case("41-magic-not-type", travels(_ZSTD, PLAIN, "gzip"), holds=HELD, peer=_NO_ZSTD),
    Case("41-plain-called-gzip", travels(PLAIN, PLAIN), holds=HELD, peer="umoci goes by the type"),
    Case("41-gzip-called-plain", travels(_GZIP, PLAIN, "none"), holds=HELD, peer="by the type"),
    Case("41-xz", travels(lzma.compress(PLAIN), PLAIN), "layer 1 of 1 .*compressed with xz"),
    Case("41-bzip2", travels(bz2.compress(PLAIN), PLAIN), "layer 1 of 1 .*compressed with bzip2"),
    Case("42-cut-in-a-file", stack(PLAIN[:1000]), "cut short inside a file"),
    Case("42-cut-in-a-header", stack(PLAIN[:100]), "cut short"),
    Case("42-cut-gzip", travels(_GZIP[:-5], PLAIN), "gzip data is cut short"),
    Case("42-cut-zstd", travels(_ZSTD[:-1], PLAIN, "zstd"), "zstd data is cut short"),
    Case("42-bad-crc", travels(_GZIP[:-6] + b"\0\0" + _GZIP[-4:], PLAIN), "corrupt gzip"),
    Case("42-garbage-after-gzip", travels(_GZIP + b"garbage and more", PLAIN), "gzip"),
    Case("42-garbage-after-zstd", travels(_ZSTD + b"garbage and more", PLAIN, "zstd"), "zstd"),
    Case("42-garbage-after-tar", stack(PLAIN + b"x"), "data after the end of the tar archive"),
    Case("42-a-second-archive", stack(PLAIN + SMALL), "data after the end of the tar archive"),
    Case("42-corrupt-header", stack(f("a") + b"\1" * 512 + END), "corrupt tar header at byte 512"),
    Case("42-bad-checksum", stack(header("a", checksum=b"000000\0 ") + END), "corrupt tar header"),
    Case("42-lone-zero-block", stack(f("a") + bytes(512)), "a lone zero block"),
    Case("42-lone-zero-block-inside", stack(f("a") + bytes(512) + f("b") + END), "lone zero block"),
    Case("42-header-without-entry", stack(pax_header({"uid": "1"}) + END), "after an extended"),
    Case("42-no-end", stack(f("a", b"1")), holds={"": 0o755, "a": b"1"}),
    Case("42-much-end", stack(f("a", b"1") + bytes(50_000)), holds={"": 0o755, "a": b"1"}),
    Case(
        "42-nothing-at-all", stack(b"", END, SMALL), holds={"": 0o755, "a": b"a" * 600, "b": 0o755}
    ),
    Case("43-pax-of-600-mb", stack(header("h", b"x", 600 << 20)), r"limits\.pax-bytes", _LIMIT),
    Case("43-pax-in-many", stack(pax_header({"uid": "1" * 999}) * 2000), r"limits\.pax", _LIMIT),
    Case("43-long-name", stack(header("h", b"L", 1 << 40)), r"limits\.pax-bytes", _LIMIT),
    Case("43-window", travels(wide_window(), b"", "zstd"), r"limits\.zstd-window", _LIMIT),
    Case("43-holes", stack([sparse(65 << 30)]), r"limits\.layer-bytes", _LIMIT),
    Case(
        "43-entries",
        stack([f(f"{i}/" + "d/" * 126 + "x") for i in range(7100)], compression="zstd"),
        r"layer 1 of 1 .*limits\.entries",
        _LIMIT,
    ),
    Case("43-layers", stack(*[END] * 1001), r"1001 layers.*limits\.layers", _LIMIT),
    Case(
        "43-attributes",
        stack(
            *[[f("x", pax={f"SCHILY.xattr.user.{i}": bytes(1_000_000)})] for i in range(300)],
            compression="zstd",
        ),
        r"limits\.metadata-bytes",
        _LIMIT,
    ),
    Case(
        "44-names-in-one-directory",
        stack([f(f"p/{i}") for i in range(100_001)], compression="zstd"),
        r"p: .*limits\.directory-entries",
        _LIMIT,
    ),
    Case(
        "45-blocks",
        stack([f("big", bytes(range(256)) * 80_000)]),
        r"size 16MiB is too small: the image needs \d+MiB",
        Code.SIZE_TOO_SMALL,
    ),
    Case(
        "45-inodes",
        stack([f(f"{i % 99}/{i}") for i in range(60_000)]),
        r"size 16MiB is too small: the image needs \d+MiB",
        Code.SIZE_TOO_SMALL,
    ),
    Case("45-holes", stack([sparse(1 << 30)]), "size 16MiB is too small", Code.SIZE_TOO_SMALL),
]

_DEEP = "[" * 100_000 + "]" * 100_000
_DIGEST = "sha256:" + "0" * 64

DOCUMENTS = [
    Case(
        "46-over-4-mib",
        spelt(lambda m: {**m, "annotations": {"x": "y" * (5 << 20)}}),
        r"4194304|document-bytes|4MiB",
        _LIMIT,
    ),
    Case("46-deep", spelt(lambda m: json.dumps(m)[:-1] + f', "x": {_DEEP}}}'), "nested"),
    Case("46-5000-digits", spelt(lambda m: {**m, "x": 10**4000 * 7}), "too many digits"),
    Case("46-not-finite", spelt(lambda m: json.dumps(m)[:-1] + ', "x": 1e999}'), "finite"),
    Case("46-twice", spelt(lambda m: json.dumps(m)[:-1] + ', "layers": []}'), "same key twice"),
    Case("46-case", spelt(lambda m: {**m, "Layers": []}), "differs from a known one in case"),
    Case("46-case-in-config", spelt(lambda c: {**c, "ROOTFS": 1}, "config"), "in case only"),
    Case("46-negative-size", layer(size=-1), "size"),
    Case("46-fractional-size", layer(size=1.5), "size"),
    Case("46-size-as-text", layer(size="12"), "size"),
    Case("46-size-as-truth", layer(size=True), "size"),
    Case("46-huge-size", layer(size=1 << 63), "size"),
    Case("46-no-json", spelt(lambda m: "\x00\x1b[31m"), "no valid JSON"),
    Case("46-not-an-object", spelt(lambda m: "[]"), "invalid"),
    Case("46-index-not-an-object", spelt(lambda i: "null", "index"), "invalid"),
    Case("47-types-disagree", spelt(lambda m: {**m, "mediaType": OCI_INDEX}), "disagree|called"),
    Case("47-layers-beside-manifests", spelt(lambda m: {**m, "manifests": []}), "layers beside"),
    Case("47-schema-1", spelt(lambda m: {**m, "schemaVersion": 1}), "schema version 1"),
    Case(
        "47-unknown-layer",
        layer(mediaType="application/vnd.x\n"),
        r"unknown type 'application/vnd\.x'?\\+n'",
    ),
    Case(
        "47-wrong-os", spelt(lambda c: {**c, "os": "windows"}, "config"), "nothing for linux/amd64"
    ),
    Case("47-wrong-machine", spelt(lambda c: {**c, "architecture": "s390x"}, "config"), "s390x"),
    Case("47-diff-ids", spelt(lambda c: {**c, "rootfs": {"diff_ids": []}}, "config"), "0 diff_ids"),
    Case("48-no-platform", spelt(lambda i: _moved(i, "arm64"), "index"), "there is: linux/arm64"),
    Case("48-nested", nested(3), holds={"": 0o755, "a": b"a" * 600, "b": 0o755}, peer="one index"),
    Case("48-nested-deeper", nested(9), "nested deeper than 4"),
    Case(
        "48-attestation",
        attested(only=False),
        holds={"": 0o755, "a": b"a" * 600, "b": 0o755},
        peer="umoci asks which of the two",
    ),
    Case("48-attestation-alone", attested(only=True), "there is: none"),
    Case("49-urls", layer(urls=["http://127.0.0.1:1/x"]), "a foreign layer; its URLs are never"),
    Case(
        "49-foreign",
        layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        "a foreign layer",
    ),
    Case("50-short", layer(digest="sha256:abcd"), "digest"),
    Case("50-path", layer(digest="sha256:../../../../canary"), "digest"),
    Case("50-upper", layer(digest="sha256:" + "A" * 64), "digest"),
    Case("50-md5", layer(digest="md5:" + "0" * 32), "digest"),
    Case("50-slash", layer(digest="../x:" + "0" * 64), "digest"),
    Case("50-newline", layer(digest=_DIGEST + "\n"), "digest"),
    Case(
        "50-diff-id", spelt(lambda c: {**c, "rootfs": {"diff_ids": ["sha256:.."]}}, "config"), "dig"
    ),
    Case(
        "51-flipped",
        damaged(lambda raw: raw[:600] + b"X" + raw[601:]),
        "digest",
        Code.DIGEST_MISMATCH,
    ),
    Case("51-longer", damaged(lambda raw: raw + b"x"), "", Code.DIGEST_MISMATCH),
    Case("51-shorter", damaged(lambda raw: raw[:-1]), "", Code.DIGEST_MISMATCH),
    Case(
        "51-diff-id",
        travels(SMALL, PLAIN, "none"),
        r"layer 1 of 1 .*\(diff_id\) has the digest",
        Code.DIGEST_MISMATCH,
    ),
    Case(
        "51-diff-id-of-two",
        stack(LayerBytes(SMALL), SMALL),
        holds={"a": b"a" * 600, "b": 0o755} | {"": 0o755},
    ),
]


def _moved(index: dict[str, Any], machine: str) -> dict[str, Any]:
    [child] = index["manifests"]
    return {**index, "manifests": [{**child, "platform": {"os": "linux", "architecture": machine}}]}


CASES = [*STREAMS, *DOCUMENTS]
