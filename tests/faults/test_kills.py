"""kill -9 at random moments, again and again on one host: every restart converges.

BANGER_KILLS says how often; a release tries 200.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from support.images import directory, file, make_layout, tar
from support.invariants import artifact_problems, problems
from support.program import Program

from reconciler.store import Store

KILLS = int(os.environ.get("BANGER_KILLS", "25"))


def write_config(root: Path, size: int) -> Path:
    ages = '[gc]\nstaging-min-age = "0s"\nblob-min-age = "0s"'
    image = f'[[image]]\nname = "web"\nref = "oci:{root}/web:1"\nsize = "{size}MiB"'
    (root / "banger.toml").write_text(f"version = 1\n{ages}\n{image}\n")
    return root / "banger.toml"


def test_killed_at_random_it_converges_every_time(tmp_path: Path) -> None:
    make_layout(
        tmp_path / "web", [tar(directory("etc"), file("etc/hostname", b"guest\n"))], tag="1"
    )
    program = Program(tmp_path / "host")
    store = Store(program.state, program.cache, program.root / "tmp")
    begin = time.monotonic()
    assert program.run(write_config(tmp_path, 32)).code == 0
    whole = time.monotonic() - begin
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(KILLS):
        config = write_config(tmp_path, 33 + number % 5)
        child = subprocess.Popen(
            program.argv("--progress", "none", config),
            env=program.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.1, whole))
        child.send_signal(signal.SIGKILL)
        child.wait()
        told = f"kill {number} with seed {seed}"
        assert artifact_problems(store) == [], told
        assert (store.by_name / "web" / "rootfs.ext4").exists(), told
        result = program.run(config)
        assert result.code == 0, f"{told}: {result.err}"
        assert problems(program.state, program.cache, program.root / "tmp") == [], told
    assert "nothing changed" in program.run(config).out
