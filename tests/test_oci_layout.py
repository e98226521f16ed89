import json
import os
from pathlib import Path

import pytest
from support.images import (
    LayerBytes,
    add_image,
    digest_of,
    file,
    make_layout,
    tagged,
    tar,
    write_blob,
    write_index,
)

from reconciler.errors import BangerError, Code, ImageError
from reconciler.model import ImageSpec, Platform
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources

LAYER = tar(file("etc/hostname", b"guest\n"))
UPPER = tar(file("etc/motd", b"hello\n"))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources((), BlobCache(tmp_path / "cache"), lambda *_, **__: None, offline=True)


AMD64 = Platform("linux", "amd64")


def spec(ref: str, platform: Platform = AMD64) -> ImageSpec:
    return ImageSpec("x", ref, None, platform=platform)


def refused(sources: Sources, ref: str) -> BangerError:
    with pytest.raises(ImageError) as caught:
        sources.resolve(spec(ref))
    assert not caught.value.retryable
    return caught.value


def test_an_image_is_pinned_and_its_layers_come_into_the_cache(
    tmp_path: Path, sources: Sources
) -> None:
    layers = [LayerBytes(LAYER), LayerBytes(UPPER, "zstd"), LayerBytes(UPPER, "none")]
    digest = make_layout(tmp_path / "hello", layers, tag="1", config={"Env": ["A=b"]})
    image = spec(f"oci:{tmp_path}/hello:1")
    pinned = sources.resolve(image)
    assert pinned.digest == digest
    assert [layer.diff_id for layer in pinned.layers] == [digest_of(x.tar) for x in layers]
    assert pinned.runtime == '{"Env":["A=b"]}'
    done: list[int] = []
    for layer in pinned.layers:
        path = sources.fetch(image, layer.blob, done.append)
        assert digest_of(path.read_bytes()) == layer.blob.digest
        assert done[-1] == layer.blob.size


def test_without_a_tag_the_only_image_is_meant(tmp_path: Path, sources: Sources) -> None:
    for tag in (None, "some"):
        digest = make_layout(tmp_path / "one", [LAYER], tag=tag)
        assert sources.resolve(spec(f"oci:{tmp_path}/one")).digest == digest
        assert sources.resolve(spec(f"oci:{tmp_path}/one@{digest}")).digest == digest


def test_several_images_ask_for_a_tag(tmp_path: Path, sources: Sources) -> None:
    layout = tmp_path / "two"
    images = [
        tagged(add_image(layout, [layer]), tag) for layer, tag in ((LAYER, "a"), (UPPER, "b"))
    ]
    write_index(layout, images)
    assert sources.resolve(spec(f"oci:{layout}:b")).digest == images[1]["digest"]
    error = refused(sources, f"oci:{layout}")
    assert "several images; its tags are: a, b" in error.brief
    error = refused(sources, f"oci:{layout}:c")
    assert error.code is Code.NOT_FOUND
    assert "no such tag: c; its tags are: a, b" in error.brief


def test_platforms_under_one_tag(tmp_path: Path, sources: Sources) -> None:
    layout = tmp_path / "multi"
    machines = [("linux", "amd64"), ("linux", "arm64")]
    images = [add_image(layout, [LAYER], platform=machine) for machine in machines]
    write_index(layout, [tagged(image, "1") for image in images])
    for image, machine in zip(images, machines, strict=True):
        pinned = sources.resolve(spec(f"oci:{layout}:1", Platform(*machine)))
        assert (pinned.digest, pinned.platform) == (image["digest"], Platform(*machine))
    with pytest.raises(ImageError, match="there is: linux/amd64, linux/arm64"):
        sources.resolve(spec(f"oci:{layout}:1", Platform("linux", "riscv64")))


def test_wrong_bytes_are_refused(tmp_path: Path, sources: Sources) -> None:
    layout = tmp_path / "bad"
    make_layout(layout, [LAYER])
    image = spec(f"oci:{layout}")
    pinned = sources.resolve(image)
    blob = pinned.layers[0].blob
    path = layout / "blobs/sha256" / blob.digest[7:]
    good = path.read_bytes()
    for wrong in (good[:-1], good + b"x", b"X" + good[1:]):
        path.write_bytes(wrong)
        with pytest.raises(ImageError) as caught:
            sources.fetch(image, blob, lambda _: None)
        assert caught.value.code is Code.DIGEST_MISMATCH
    path.unlink()
    with pytest.raises(ImageError) as caught:
        sources.fetch(image, blob, lambda _: None)
    assert caught.value.code is Code.NOT_FOUND
    os.mkfifo(path)
    with pytest.raises(ImageError, match="no regular file"):
        sources.fetch(image, blob, lambda _: None)


def test_what_is_no_layout(tmp_path: Path, sources: Sources) -> None:
    assert refused(sources, f"oci:{tmp_path}/missing").code is Code.NOT_FOUND
    layout = tmp_path / "x"
    make_layout(layout, [LAYER])
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    assert "version" in refused(sources, f"oci:{layout}").brief
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(" " * (4 << 20) + "{}")
    assert refused(sources, f"oci:{layout}").code is Code.LIMIT_EXCEEDED
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    assert "its tags are: none" in refused(sources, f"oci:{layout}").brief


def test_indexes_within_indexes_end(tmp_path: Path, sources: Sources) -> None:
    layout = tmp_path / "deep"
    kind = "application/vnd.oci.image.index.v1+json"
    image = add_image(layout, [LAYER])
    for depth in range(1, 6):
        raw = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [image]}).encode()
        image = write_blob(layout, raw, kind)
        write_index(layout, [image])
        if depth <= 3:
            assert sources.resolve(spec(f"oci:{layout}")).layers
        else:
            assert "nested" in refused(sources, f"oci:{layout}").brief
