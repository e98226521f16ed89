"""`oci-archive:` and `docker-archive:`: what skopeo and docker write, and what attackers might."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tarball
from support.images import LayerBytes, digest_of, file, make_layout, tar
from support.tarball import entry

from reconciler.errors import BangerError, Code, ImageError
from reconciler.model import ImageSpec, PinnedImage, Platform
from reconciler.oci.blobs import BlobCache
from reconciler.oci.limits import Limits
from reconciler.oci.source import Sources

LAYER = tar(file("etc/hostname", b"guest\n"), file("big", bytes(range(256)) * 4000))
UPPER = tar(file("etc/motd", b"hello\n"))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources((), BlobCache(tmp_path / "cache"), lambda *_, **__: None, offline=True)


def spec(ref: str) -> ImageSpec:
    return ImageSpec("x", ref, None, pull="never", platform=Platform("linux", "amd64"))


def refused(sources: Sources, ref: str) -> BangerError:
    with pytest.raises(ImageError) as caught:
        fetched(sources, ref)
    assert not caught.value.retryable
    assert caught.value.brief.isprintable()
    return caught.value


def fetched(sources: Sources, ref: str) -> PinnedImage:
    """Resolve, fetch every layer, and see that it is what it claims to be."""
    pinned = sources.resolve(spec(ref))
    for layer in pinned.layers:
        path = sources.fetch(spec(ref), layer.blob, lambda _: None)
        assert digest_of(path.read_bytes()) == layer.blob.digest
    return pinned


def skopeo(source: str, target: str) -> None:
    subprocess.run(["skopeo", "copy", "--quiet", source, target], check=True, capture_output=True)


def config_of(*layers: bytes, **changes: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    body = {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]}, "rootfs": rootfs}
    return json.dumps(body | changes).encode()


def saved(*images: dict[str, Any]) -> bytes:
    """manifest.json of an archive."""
    return entry("manifest.json", data=json.dumps(images).encode())


def write(path: Path, *entries: bytes, end: bytes = tarball.END) -> str:
    path.write_bytes(tarball.tar(*entries, end=end))
    return f"docker-archive:{path}"


IMAGE = {"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["a/layer.tar"]}


# -- what others write ---------------------------------------------------------------------------


def test_skopeos_archives_give_what_the_layout_gives(tmp_path: Path, sources: Sources) -> None:
    layers = [LayerBytes(LAYER), LayerBytes(UPPER), LayerBytes(LAYER)]
    digest = make_layout(tmp_path / "l", layers, tag="1", config={"Env": ["A=b"]})
    skopeo(f"oci:{tmp_path}/l:1", f"oci-archive:{tmp_path}/o.tar:1")
    skopeo(f"oci:{tmp_path}/l:1", f"docker-archive:{tmp_path}/d.tar:lab.io/web:1")
    oci = fetched(sources, f"oci-archive:{tmp_path}/o.tar:1")
    assert oci == sources.resolve(spec(f"oci-archive:{tmp_path}/o.tar"))
    assert oci.digest == digest
    docker = fetched(sources, f"docker-archive:{tmp_path}/d.tar:lab.io/web:1")
    assert docker == sources.resolve(spec(f"docker-archive:{tmp_path}/d.tar"))
    for image in (oci, docker):
        assert [layer.diff_id for layer in image.layers] == [digest_of(x.tar) for x in layers]
        assert image.runtime == '{"Env":["A=b"]}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "d.tar", "l", "o.tar"]


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_docker_saves_old_form(tmp_path: Path, sources: Sources, kind: str) -> None:
    same = "../a/layer.tar" if kind == "symlink" else "a/layer.tar"
    image = IMAGE | {"Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}
    ref = write(
        tmp_path / "s.tar",
        entry("a/", "dir"),
        entry("a/VERSION", data=b"1.0"),
        entry("a/layer.tar", data=LAYER),
        entry("./b/layer.tar", data=UPPER),
        entry("c/layer.tar", kind, target=same),
        entry("c.json", data=config_of(LAYER, UPPER, LAYER)),
        saved(image),
        entry("repositories", data=b"{}"),
    )
    for name in (
        "",
        ":web:1",
        ":docker.io/library/web:1",
        f"@{digest_of(config_of(LAYER, UPPER, LAYER))}",
    ):
        pinned = fetched(sources, ref + name)
        assert [layer.blob.digest for layer in pinned.layers] == [
            digest_of(layer) for layer in (LAYER, UPPER, LAYER)
        ]


def test_docker_saves_new_form_is_both(tmp_path: Path, sources: Sources) -> None:
    """Since docker 25 the archive is an OCI layout, too; layers may be compressed then."""
    digest = make_layout(tmp_path / "l", [LAYER, UPPER], tag="1")
    manifest = json.loads((tmp_path / "l/blobs/sha256" / digest[7:]).read_bytes())
    places = [f"blobs/sha256/{x['digest'][7:]}" for x in (manifest["config"], *manifest["layers"])]
    body = [{"Config": places[0], "RepoTags": ["web:1"], "Layers": places[1:]}]
    (tmp_path / "l/manifest.json").write_text(json.dumps(body))
    with tarfile.open(tmp_path / "h.tar", "w") as archive:
        archive.add(tmp_path / "l", arcname="")
    one = fetched(sources, f"docker-archive:{tmp_path}/h.tar:web:1")
    other = fetched(sources, f"oci-archive:{tmp_path}/h.tar:1")
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert (mine.blob.digest, mine.diff_id) == (theirs.blob.digest, theirs.diff_id)


def test_compressed_layers_under_old_names(tmp_path: Path, sources: Sources) -> None:
    packed = gzip.compress(LAYER, mtime=0)
    ref = write(
        tmp_path / "s.tar",
        entry("a/layer.tar", data=packed),
        entry("c.json", data=config_of(LAYER)),
        saved(IMAGE),
    )
    [layer] = fetched(sources, ref).layers
    assert (layer.blob.digest, layer.diff_id) == (digest_of(packed), digest_of(LAYER))


def test_one_of_several_images(tmp_path: Path, sources: Sources) -> None:
    arm = config_of(UPPER, architecture="arm64")
    ref = write(
        tmp_path / "s.tar",
        entry("a/layer.tar", data=LAYER),
        entry("u/layer.tar", data=UPPER),
        entry("c.json", data=config_of(LAYER)),
        entry("d.json", data=config_of(UPPER)),
        entry("e.json", data=arm),
        saved(
            IMAGE,
            {"Config": "e.json", "RepoTags": ["lab.io/x:2"], "Layers": ["u/layer.tar"]},
            {"Config": "d.json", "RepoTags": ["lab.io/x:2"], "Layers": ["u/layer.tar"]},
            {"Config": "missing", "RepoTags": None, "Layers": []},
        ),
    )
    assert fetched(sources, f"{ref}:web:1").layers[0].diff_id == digest_of(LAYER)
    assert fetched(sources, f"{ref}:lab.io/x:2").layers[0].diff_id == digest_of(UPPER)
    for name in ("", ":web:2", ":No Reference"):
        error = refused(sources, ref + name)
        assert error.code is Code.NOT_FOUND
        assert "its tags are: docker.io/library/web:1, lab.io/x:2" in error.brief


def test_an_archive_that_changes_is_read_anew(tmp_path: Path, sources: Sources) -> None:
    path = tmp_path / "s.tar"
    seen = set()
    for content in (b"one", b"three"):
        layer = tar(file("f", content))
        parts = (entry("a/layer.tar", data=layer), entry("c.json", data=config_of(layer)))
        seen.add(fetched(sources, write(path, *parts, saved(IMAGE))).digest)
    assert len(seen) == 2


def test_large_members_are_skipped_not_read(tmp_path: Path, sources: Sources) -> None:
    """A hole of 1 TiB in front of everything: reading it would take for ever."""
    path, hole = tmp_path / "s.tar", 1 << 40
    parts = [entry("a/layer.tar", data=LAYER), entry("c.json", data=config_of(LAYER)), saved(IMAGE)]
    with path.open("wb") as handle:
        handle.write(tarball.header("hole", size=hole))
        handle.seek(hole, io.SEEK_CUR)
        handle.write(tarball.tar(*parts))
    assert fetched(sources, f"docker-archive:{path}").layers


# -- what attackers might write --------------------------------------------------------------------

GOOD = (entry("a/layer.tar", data=LAYER), entry("c.json", data=config_of(LAYER)))

HOSTILE: dict[str, tuple[list[bytes], str]] = {
    "a-config-by-a-path-outside": (
        [*GOOD, entry("../c.json", data=config_of(LAYER)), saved(IMAGE | {"Config": "../c.json"})],
        "not in the archive",
    ),
    "an-absolute-config": (
        [*GOOD, entry("/etc/passwd", data=b"{}"), saved(IMAGE | {"Config": "/etc/passwd"})],
        "not in the archive",
    ),
    "a-layer-that-is-a-link-out": (
        [GOOD[1], entry("a/layer.tar", "symlink", target="../../outside"), saved(IMAGE)],
        "no file of the archive",
    ),
    "a-layer-that-is-an-absolute-link": (
        [GOOD[1], entry("a/layer.tar", "symlink", target="/etc/passwd"), saved(IMAGE)],
        "no file of the archive",
    ),
    "a-layer-that-is-a-hardlink-out": (
        [GOOD[1], entry("a/layer.tar", "hardlink", target="../outside"), saved(IMAGE)],
        "no file of the archive",
    ),
    "links-in-circles": (
        [
            GOOD[1],
            entry("a/layer.tar", "symlink", target="b"),
            entry("a/b", "symlink", target="layer.tar"),
            saved(IMAGE),
        ],
        "have no end",
    ),
    "a-link-to-nothing": (
        [GOOD[1], entry("a/layer.tar", "symlink", target="b"), saved(IMAGE)],
        "not in the archive",
    ),
    "a-device-as-layer": (
        [GOOD[1], entry("a/layer.tar", "char", rdev=(1, 5)), saved(IMAGE)],
        "no file of the archive",
    ),
    "a-fifo-as-config": (
        [GOOD[0], entry("c.json", "fifo"), saved(IMAGE)],
        "no file of the archive",
    ),
    "a-directory-as-config": (
        [GOOD[0], entry("c.json", "dir"), saved(IMAGE)],
        "not in the archive",
    ),
    "two-lists": ([*GOOD, saved(IMAGE), saved(IMAGE)], "manifest.json twice"),
    "two-layers-of-one-name": ([*GOOD, GOOD[0], saved(IMAGE)], "layer.tar twice"),
    "other-bytes": (
        [entry("a/layer.tar", data=UPPER), GOOD[1], saved(IMAGE)],
        "other bytes than its digest",
    ),
    "no-layers": ([*GOOD, saved({"Config": "c.json"})], "does not tell config and layers"),
    "too-few-layers": ([*GOOD, saved(IMAGE | {"Layers": []})], "0 layers but 1 diff_ids"),
    "keys-in-another-case": ([*GOOD, saved(IMAGE | {"layers": []})], "something else than images"),
    "no-image": ([*GOOD, saved()], "lists no images"),
    "a-digest-that-is-none": (
        [GOOD[1], saved(IMAGE | {"Layers": ["blobs/sha256/.."]})],
        "no sha256 or sha512 digest",
    ),
    "a-surrogate": ([*GOOD, saved(IMAGE | {"Config": "\ud800"})], "not in the archive"),
    "a-corrupt-header": ([GOOD[0], b"x" * 512, GOOD[1], saved(IMAGE)], "corrupt tar header"),
    "a-layer-beyond-the-end": (
        [GOOD[1], saved(IMAGE), entry("a/layer.tar", data=LAYER, size=len(LAYER) + (1 << 40))],
        "cut short",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path: Path, sources: Sources, name: str) -> None:
    (tmp_path / "outside").write_bytes(LAYER)
    (tmp_path / "in").mkdir()
    entries, why = HOSTILE[name]
    ref = write(tmp_path / "in" / "s.tar", *entries)
    assert why in refused(sources, ref).brief
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["s.tar"]
    assert (tmp_path / "outside").read_bytes() == LAYER


PACKERS = {"gzip": "gunzip", "xz": "unxz", "bzip2": "bunzip2", "zstd": "unzstd"}


@pytest.mark.parametrize("pack", PACKERS)
def test_a_packed_archive_says_how_to_unpack_it(
    tmp_path: Path, sources: Sources, pack: str
) -> None:
    write(tmp_path / "s.tar", *GOOD, saved(IMAGE))
    packed = subprocess.run([pack, "-c", tmp_path / "s.tar"], capture_output=True, check=True)
    (tmp_path / "s.tgz").write_bytes(packed.stdout)
    for scheme in ("docker-archive", "oci-archive"):
        error = refused(sources, f"{scheme}:{tmp_path}/s.tgz")
        assert "compressed" in error.brief
        assert f"`{PACKERS[pack]}`" in error.resolution


def not_there(root: Path) -> Path:
    return root / "missing.tar"


def a_fifo(root: Path) -> Path:
    subprocess.run(["mkfifo", root / "f"], check=True)
    return root / "f"


def a_directory(root: Path) -> Path:
    return root


@pytest.mark.parametrize("make", [not_there, a_fifo, a_directory])
@pytest.mark.parametrize("scheme", ["docker-archive", "oci-archive"])
def test_files_that_are_none(
    tmp_path: Path, sources: Sources, make: Callable[[Path], Path], scheme: str
) -> None:
    path = make(tmp_path)
    assert str(path) in refused(sources, f"{scheme}:{path}").brief


def test_the_wrong_scheme_is_said(tmp_path: Path, sources: Sources) -> None:
    make_layout(tmp_path / "l", [LAYER], tag="1")
    skopeo(f"oci:{tmp_path}/l:1", f"oci-archive:{tmp_path}/o.tar:1")
    assert "oci-archive:" in refused(sources, f"docker-archive:{tmp_path}/o.tar").resolution


def test_limits_are_named(tmp_path: Path) -> None:
    limits = Limits(archive_entries=2, document_bytes=64, layers=1)
    with Sources((), BlobCache(tmp_path / "c"), lambda *_, **__: None, limits=limits) as sources:
        ref = write(tmp_path / "many.tar", *GOOD, saved(IMAGE))
        assert "limits.archive-entries = 2" in refused(sources, ref).brief
        ref = write(tmp_path / "long.tar", saved(*[IMAGE] * 9))
        assert 'limits.document-bytes = "64B"' in refused(sources, ref).brief


def test_no_digest_is_believed(tmp_path: Path, sources: Sources) -> None:
    """An OCI archive whose blob has other bytes than its name says."""
    make_layout(tmp_path / "l", [LAYER], tag="1")
    pinned = fetched(sources, f"oci:{tmp_path}/l:1")
    blob = tmp_path / "l/blobs/sha256" / pinned.layers[0].blob.digest[7:]
    blob.write_bytes(hashlib.sha256(b"other").digest().ljust(blob.stat().st_size, b"x"))
    with tarfile.open(tmp_path / "o.tar", "w") as archive:
        archive.add(tmp_path / "l", arcname=".")
    BlobCache(tmp_path / "cache").path(pinned.layers[0].blob.digest).unlink()
    error = refused(sources, f"oci-archive:{tmp_path}/o.tar:1")
    assert error.code is Code.DIGEST_MISMATCH
