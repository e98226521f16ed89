"""P1 to P22 as a normal user: mode 0 and 0555 are no obstacle to root, so root proves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import unprivileged

from hostile.bench import compare, read_back
from hostile.pitfalls import CASES


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """All of them in one pass; the published filesystems lie in state/images/by-name."""
    with unprivileged.home() as home:
        rows = ["version = 1"]
        for number, case in enumerate(CASES):
            case.make(home / f"layout-{number}", str(home / "outside"))
            image = {"name": f"p{number}", "ref": f"oci:{home}/layout-{number}", "size": case.size}
            rows += ["[[image]]", "guest = false"]
            rows += [f"{key} = {json.dumps(value)}" for key, value in image.items()]
        (home / "banger.toml").write_text("\n".join(rows))
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", str(unprivileged.NOBODY), home], check=True)
        directories = ["--state-dir", home / "state", "--cache-dir", home / "cache"]
        program = [sys.executable, "-m", "reconciler"]
        source = {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        done = unprivileged.run([*program, *directories, home / "banger.toml"], home, source)
        assert done.returncode == 0, done.stderr
        yield home


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.id for case in CASES])
def test_pitfall(number: int, built: Path) -> None:
    rootfs = built / "state/images/by-name" / f"p{number}" / "rootfs.ext4"
    compare(CASES[number], read_back(rootfs))


def test_features_are_those_of_every_guest(built: Path) -> None:
    """P21: what the host's mke2fs.conf turns on must not reach an old kernel."""
    rootfs = built / "state/images/by-name/p0/rootfs.ext4"
    said = subprocess.run(["dumpe2fs", "-h", rootfs], capture_output=True, text=True, check=True)
    [line] = [line for line in said.stdout.splitlines() if line.startswith("Filesystem features")]
    assert not {"orphan_file", "metadata_csum_seed", "casefold"} & set(line.split())


def test_nothing_is_left_and_no_pitfall_is_forgotten(built: Path) -> None:
    assert not list(built.rglob("*.staging"))
    assert not list(built.rglob("*PWNED*"))
    words = [word for case in CASES for word in case.id.split("-")]
    numbers = {int(word[1:]) for word in words if word[1:].isdigit() and word[0] == "P"}
    assert numbers == set(range(1, 23))
