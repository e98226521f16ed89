"""`--replace NAME[:STAGE]`: what runs again, what is reused, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.kernels import bzimage
from support.program import Program, Result

BUILD = ["flatten", "ext4", "guest", "kernel", "publish", "record"]
LATE = ["kernel", "publish", "record"]


class Lab:
    """One image with a kernel, built."""

    def __init__(self, root: Path, builder: str = "auto") -> None:
        self.program = Program(root / "host")
        self.layout, self.path = root / "web", root / "banger.toml"
        make_layout(self.layout, [tar(directory("etc"), file("etc/hostname", b"guest\n"))])
        (root / "vmlinuz").write_bytes(bzimage())
        self.path.write_text(
            f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{root}/vmlinuz" }}\n'
            f'[defaults]\nbuilder = "{builder}"\nsize = "16MiB"\n'
            '[[image]]\nname = "web"\nref = "oci:web"\nkernel-ref = "lab"\n'
            '[[image]]\nname = "db"\nref = "oci:web"\nguest = false\n'
        )
        assert self.program.run(self.path).code == 0

    def run(self, *words: str) -> Result:
        return self.program.run(self.path, "--json", *words)

    def inode(self) -> int:
        return self.program.rootfs("web").stat().st_ino


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def runs(result: Result, *, planned: bool = False) -> list[str]:
    stages = result.images["web"]["stages"]
    assert planned or all(s["status"] == "ok" for s in stages if s["action"] == "run")
    return [s["name"] for s in stages if s["action"] == "run"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("web", ["pull", *BUILD]),
        ("web:resolve", ["pull", *BUILD]),
        ("web:pull", ["pull", *BUILD]),
        ("web:flatten", BUILD),
        ("web:ext4", BUILD),
        ("web:guest", BUILD),
        ("web:kernel", LATE),
        ("web:publish", LATE),
        ("web:record", ["record"]),
    ],
)
def test_from_that_stage_on(lab: Lab, asked: str, expected: list[str]) -> None:
    before, inode = lab.program.rootfs("web").read_bytes(), lab.inode()
    planned = lab.program.run("plan", lab.path, "--replace", asked, "--json")
    assert runs(planned, planned=True) == expected
    assert lab.inode() == inode
    result = lab.run("--replace", asked)
    assert result.code == 0, result.err
    web = result.images["web"]
    assert (web["action"], web["reason"]) == ("replace", "Requested")
    assert runs(result) == expected
    assert result.document["changed"]
    assert result.images["db"]["action"] == "noop"
    assert lab.program.rootfs("web").read_bytes() == before
    assert (lab.inode() != inode) == (asked != "web:record")
    after = lab.run("--detailed-exitcode")
    assert after.code == 0
    assert lab.program.run("verify").code == 0
    assert not list((lab.program.state / "images").glob("*.staging"))


def test_the_other_builder_does_it_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "tools")
    result = lab.run("--replace", "web:ownership")
    assert runs(result) == [*BUILD[:2], "ownership", *BUILD[2:]]
    assert lab.program.run("verify").code == 0


def test_a_damaged_layer_in_the_cache_is_fetched_again(lab: Lab) -> None:
    blobs = lab.program.cache / "oci/blobs/sha256"
    layer = next(path for path in blobs.iterdir() if path.read_bytes()[:2] == b"\x1f\x8b")
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-8] + bytes(8))
    assert lab.run("--replace", "web:pull").code == 0
    assert layer.read_bytes() == whole


def test_an_artifact_that_a_guest_runs_from_stays(lab: Lab) -> None:
    inode = lab.inode()
    with lab.program.rootfs("web").open("rb"):
        result = lab.run("--replace", "web")
    assert result.code == 1
    assert result.images["web"]["reason"] == "InUse"
    assert result.images["web"]["error"]["code"] == "busy"
    assert lab.inode() == inode
    assert lab.run("--replace", "web").code == 0


def test_several_at_once(lab: Lab) -> None:
    result = lab.run("--replace", "web:kernel", "--replace", "db")
    assert {image["reason"] for image in result.images.values()} == {"Requested"}


def test_a_suspended_image_is_not_touched(lab: Lab) -> None:
    lab.program.run("suspend", "web", "--reason", "x")
    assert lab.run("--replace", "web").images["web"]["action"] == "suspend"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--replace", "web:ext3"], 64, "ownership"),
        (["--replace", ""], 64, "NAME"),
        (["--replace", "wbe"], 1, 'Did you mean "web"?'),
        (["--image", "wbe"], 1, 'Did you mean "web"?'),
        (["--replace", "web", "--image", "db"], 64, "--image"),
        (["--replace", "web", "--watch"], 64, "--watch"),
    ],
)
def test_what_cannot_be_meant(lab: Lab, words: list[str], code: int, said: str) -> None:
    result = lab.run(*words)
    assert result.code == code
    assert said in result.err
