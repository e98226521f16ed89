import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.images import digest_of, file, make_layout, tar

from reconciler.errors import BangerError, Code
from reconciler.model import DesiredImage, ImageSpec
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources
from reconciler.room import Feed, Interrupted, Room
from reconciler.stages import pull

CONTENTS = [b"one" * 10, b"two" * 500_000, b"three"]
LAYERS = [tar(file("f", content)) for content in CONTENTS]


class Build:
    """A room for an image with three layers, the first of them twice."""

    def __init__(self, root: Path) -> None:
        self.layout = root / "layout"
        make_layout(self.layout, [*LAYERS, LAYERS[0]], compression="none")
        self.events: list[dict[str, Any]] = []
        self.blobs = BlobCache(root / "cache")
        self.sources = Sources((), self.blobs, self.emit)
        spec = ImageSpec("x", f"oci:{self.layout}", None)
        self.image = DesiredImage(spec, self.sources.resolve(spec), None, None)
        no = cast(Any, SimpleNamespace())
        self.room = Room(
            staging=root / "staging",
            scratch=root / "scratch",
            store=no,
            blobs=self.blobs,
            sources=self.sources,
            tools=no,
            kernels=no,
            records=no,
            emit=self.emit,
            feed=Feed(self.image.pinned),
        )

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def blob(self, number: int) -> Path:
        digest = self.image.pinned.layers[number].blob.digest
        return self.layout / "blobs/sha256" / digest[7:]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    built = Build(tmp_path)
    with built.sources:
        yield built


def test_every_layer_is_fed_and_reported(build: Build) -> None:
    pull.run(build.image, build.room)
    for layer in build.image.pinned.layers:
        path = build.room.feed.get(layer.blob.digest)
        assert digest_of(path.read_bytes()) == layer.blob.digest
        last = [event for event in build.events if event["layer"] == layer.blob.digest][-1]
        assert (last["done"], last["total"], last["unit"]) == (layer.blob.size,) * 2 + ("bytes",)
        assert (last["event"], last["image"], last["stage"]) == ("stage.progress", "x", "pull")
    assert len(build.events) < 20


def test_the_newest_layer_is_fetched_first(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "THREADS", 1)
    pull.run(build.image, build.room)
    fetched = list(dict.fromkeys(event["layer"] for event in build.events))
    newest_first = [layer.blob.digest for layer in reversed(build.image.pinned.layers)]
    assert fetched == list(dict.fromkeys(newest_first))


def test_what_is_cached_is_not_fetched(build: Build) -> None:
    pull.run(build.image, build.room)
    for number in range(3):
        build.blob(number).unlink()
    build.room.feed = Feed(build.image.pinned)
    pull.run(build.image, build.room)
    assert build.room.feed.get(build.image.pinned.layers[0].blob.digest).is_file()


def test_a_failure_reaches_who_waits(build: Build) -> None:
    build.blob(1).unlink()
    waiting: list[BangerError] = []

    def wait() -> None:
        try:
            build.room.feed.get(build.image.pinned.layers[1].blob.digest)
        except BangerError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(BangerError) as caught:
        pull.run(build.image, build.room)
    thread.join(5)
    assert caught.value.code is Code.NOT_FOUND
    assert waiting == [caught.value]


def test_it_stops_when_the_pass_is_told_to(build: Build) -> None:
    build.room.cancelled.set()
    with pytest.raises(Interrupted):
        pull.run(build.image, build.room)
    assert not any(build.blobs.has(layer.blob) for layer in build.image.pinned.layers)
