"""The README's first image boots: built by the example as it stands, started as `launch` says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.machine import require_qemu, watch
from support.program import Program

EXAMPLE = Path(__file__).parents[2] / "examples/banger.toml"


def test_the_example_boots_with_the_line_that_launch_prints(tmp_path: Path) -> None:
    require_qemu()
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this machine, which brings the example's kernel")
    program = Program(tmp_path / "home")
    built = program.run("--json", EXAMPLE)
    assert built.code == 0, built.out + built.err
    assert built.document["warnings"] == []
    launch = program.run("launch", "hello-latest", "--print", "--json").document
    disk = tmp_path / "hello.ext4"
    commands = {
        name: [word.replace(f"{Path.cwd()}/hello-latest.ext4", str(disk)) for word in launch[name]]
        for name in ("prepare", "qemu")
    }
    subprocess.run(commands["prepare"], check=True)
    qemu = commands["qemu"]
    at = qemu.index("kvm")  # a build machine may offer a KVM that does not work
    assert qemu[at - 1 : at + 3] == ["-accel", "kvm", "-accel", "tcg"]
    ran = watch([*qemu[: at - 1], *qemu[at + 1 :]])
    assert "\nhello\n" in ran.console, ran.console
    assert "banger-init: the application ended with status: 0\n" in ran.console
    assert "banger-network: set as the kernel command line says" in ran.console
    print(f"the example ran and powered off in {ran.processor_seconds:.1f} s of processor time")
