"""Children that are killed, hang, are missing or outlive us: F9 and F11 of the failure table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.program import Program

TOOLS = ("mkfs.ext4", "debugfs", "e2fsck")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_layout(tmp_path / "web", [tar(directory("etc"), file("etc/hostname", b"guest\n"))])
    image = (
        f'[[image]]\nname = "web"\nref = "oci:{tmp_path}/web"\nsize = "32MiB"\nbuilder = "tools"'
    )
    (tmp_path / "banger.toml").write_text(f"version = 1\n{image}\n")
    return tmp_path / "banger.toml"


def wrapped(tmp_path: Path, tool: str, script: str) -> Program:
    """A host on which `tool` runs `script` first; `-V` passes, so that its version is known."""
    real = shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / tool
    wrapper.write_text(f'#!/bin/sh\n[ "$1" = -V ] || {script}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    return Program(tmp_path / "host", {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGXFSZ])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_killed_is_named_with_its_signal(
    tmp_path: Path, config: Path, tool: str, number: signal.Signals
) -> None:
    program = wrapped(tmp_path, tool, f"kill -{int(number)} $$")
    result = program.run(config, "--json")
    assert result.code == 1
    error = result.images["web"]["error"]
    assert error["code"] == "tool-failed"
    assert number.name in error["message"]
    assert result.images["web"]["path"] is None, "nothing stands there"
    assert not list((program.state / "images").glob("*.staging"))
    assert Program(tmp_path / "host").run(config).code == 0


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_hangs_dies_with_a_parent_that_is_killed(
    tmp_path: Path, config: Path, tool: str
) -> None:
    told = tmp_path / "pid"
    program = wrapped(
        tmp_path, tool, f"{{ echo $$ >{told}.new; mv {told}.new {told}; exec sleep 600; }}"
    )
    parent = subprocess.Popen(
        program.argv(config),
        env=program.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not told.exists():
        assert parent.poll() is None
        time.sleep(0.01)
    child = Path("/proc", told.read_text().strip())
    parent.kill()
    parent.wait()
    while child.exists() and "\nState:\tZ" not in _status(child):
        time.sleep(0.01)
    assert Program(tmp_path / "host").run(config).code == 0


def _status(process: Path) -> str:
    try:
        return (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ"


def test_a_full_log_and_a_closed_stderr_end_no_build(tmp_path: Path, config: Path) -> None:
    program = Program(tmp_path / "host")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program.argv(config, "--json"),
            env=program.environment,
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert done.returncode == 0
    assert json.loads(done.stdout)["summary"]["created"] == 1
    words = " ".join(program.argv(config, "--json"))
    shut = subprocess.run(
        ["sh", "-c", f"exec {words} 2>&-"],
        env=program.environment,
        capture_output=True,
        check=False,
    )
    assert json.loads(shut.stdout)["summary"]["unchanged"] == 1
