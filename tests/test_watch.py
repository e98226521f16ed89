"""Which directories are watched, when events cannot be trusted, and what counts as settled."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import pytest

from reconciler.watch import Places, Sight, Watch, blind_spot, glance, hops, places, settled


def made(root: Path, *files: str, **links: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("version = 1\n")
    for name, target in links.items():
        (root / name.replace("__", "/")).symlink_to(target)


def relative(root: Path, path: str) -> list[str]:
    return [str(p.relative_to(root)) for p in hops(root / path)]


class TestHops:
    def test_a_plain_file(self, tmp_path: Path) -> None:
        made(tmp_path, "etc/c.toml")
        assert relative(tmp_path, "etc/c.toml") == ["etc"]

    def test_a_configmap(self, tmp_path: Path) -> None:
        made(tmp_path, "m/..1/c.toml")
        (tmp_path / "m/..data").symlink_to("..1")
        (tmp_path / "m/c.toml").symlink_to("..data/c.toml")
        assert relative(tmp_path, "m/c.toml") == ["m", "m", "m/..1"]

    def test_a_linked_directory_and_a_link_out_of_it(self, tmp_path: Path) -> None:
        made(tmp_path, "trees/abc/conf/c.toml", current="trees/abc")
        (tmp_path / "trees/abc/c.toml").symlink_to("../../trees/abc/conf/c.toml")
        found = relative(tmp_path, "current/c.toml")
        assert found == [".", "trees/abc", "trees/abc/conf"]

    def test_a_loop_ends(self, tmp_path: Path) -> None:
        made(tmp_path, a="b", b="a")
        assert hops(tmp_path / "a")

    def test_missing_directories_give_the_nearest_that_exist(self, tmp_path: Path) -> None:
        found = places(tmp_path / "no" / "such" / "c.toml")
        assert set(found) == {tmp_path, tmp_path.parent}

    def test_places_are_the_directories_and_their_parents(self, tmp_path: Path) -> None:
        made(tmp_path, "etc/c.toml")
        found = places(tmp_path / "etc/c.toml")
        assert set(found) == {tmp_path / "etc", tmp_path}
        before = found[tmp_path / "etc"]
        (tmp_path / "etc").rename(tmp_path / "old")
        made(tmp_path, "etc/c.toml")
        assert places(tmp_path / "etc/c.toml")[tmp_path / "etc"] != before


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:40 / /srv/nfs rw,relatime shared:5 - nfs4 host:/x rw
3 1 0:41 / /srv/ssh rw - fuse.sshfs host:/ rw
4 1 0:42 / /srv/my\\040smb rw - cifs //host/x rw
5 2 8:2 / /srv/nfs/local rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/srv/nfs/etc", "nfs4"),
        ("/srv/ssh", "fuse.sshfs"),
        ("/srv/my smb/x", "cifs"),
    ],
)
def test_filesystems_without_events_are_known(place: str, told: str) -> None:
    assert told in blind_spot({Path(place): (0, 0)}, MOUNTS)


def test_a_local_filesystem_is_trusted(tmp_path: Path) -> None:
    assert blind_spot(places(tmp_path / "c"), MOUNTS) == ""


def test_two_readings_have_to_agree(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a")
    stop = threading.Event()

    def scribble() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path.write_text("x" * (number % 50))
            time.sleep(0.01)
        path.write_text("the end")

    writer = threading.Thread(target=scribble)
    writer.start()
    threading.Timer(0.5, stop.set).start()
    sight = settled(path)
    writer.join()
    assert sight.data is None or sight.data == path.read_bytes()
    assert settled(path).data == b"the end"


def test_a_missing_file_is_a_sight_of_its_own(tmp_path: Path) -> None:
    sight = glance(tmp_path / "none")
    assert sight.data is None
    assert "does not exist" in str(sight.problem)
    assert sight.digest != Sight(b"").digest


def test_what_changed_before_it_was_armed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a")
    first = glance(path)
    path.write_text("b")
    told: list[Sight | bool] = []
    news = threading.Event()

    def tell(what: Sight | bool) -> None:
        told.append(what)
        if what is True:
            news.set()

    watch = Watch(path, first, 0.01, tell, lambda event, **fields: None)
    watch.start()
    assert news.wait(60)
    watch.stop()
    assert [s.data for s in told if isinstance(s, Sight)] == [b"b"]


class Heard:
    """What a Watch told, and what it emitted."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[Sight | bool] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[tuple[str, dict[str, object]]] = queue.SimpleQueue()

    def emit(self, event: str, /, **fields: object) -> None:
        self.events.put((event, fields))


def test_a_look_finds_what_no_event_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a")
    (tmp_path / "elsewhere").mkdir()
    elsewhere = places(tmp_path / "elsewhere/deeper/c.toml")
    monkeypatch.setattr("reconciler.watch.places", lambda _path: elsewhere)
    heard = Heard()
    watch = Watch(path, glance(path), 0.01, heard.told.put, heard.emit)
    watch.start()
    assert heard.told.get(timeout=60) is True
    path.write_text("b")
    watch.look()
    sight = heard.told.get(timeout=60)
    watch.stop()
    assert isinstance(sight, Sight)
    assert sight.data == b"b"


def test_the_thread_survives_what_nobody_thought_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a")
    first, calls = glance(path), []

    def broken(there: Path) -> Places:
        calls.append(there)
        if len(calls) == 1:
            raise RuntimeError("who would have thought")
        return places(there)

    monkeypatch.setattr("reconciler.watch.places", broken)
    monkeypatch.setattr("reconciler.watch.POLL_SECONDS", 0.01)
    heard = Heard()
    watch = Watch(path, first, 0.01, heard.told.put, heard.emit)
    watch.start()
    assert heard.told.get(timeout=60) is True
    watch.stop()
    assert heard.events.get()[0] == "watch.degraded"
    assert heard.events.get()[0] == "watch.armed"
