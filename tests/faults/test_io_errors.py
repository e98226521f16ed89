"""A disk that fails and goes on failing: nothing is published, no fsync is tried again (F8)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.invariants import artifact_problems
from support.program import Program

from reconciler.manifest import damage
from reconciler.records import Records
from reconciler.store import Store

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "shim.c", "-ldl"], check=True
    )
    return library


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_layout(tmp_path / "web", [tar(directory("etc"), file("etc/x", bytes(range(256)) * 999))])
    image = (
        f'[[image]]\nname = "web"\nref = "oci:{tmp_path}/web"\nsize = "32MiB"\nbuilder = "tools"'
    )
    (tmp_path / "banger.toml").write_text(f"version = 1\n{image}\n")
    return tmp_path / "banger.toml"


def check(tmp_path: Path, config: Path, env: dict[str, str]) -> bool:
    """Run a pass with the fault; True when it got through. If not: nothing half, and it heals."""
    shutil.rmtree(tmp_path / "host", ignore_errors=True)
    program = Program(tmp_path / "host", env)
    result = program.run(config, "--json")
    store = Store(program.state, program.cache, program.root / "tmp")
    assert artifact_problems(store) == [], env
    if result.code == 0:
        return True
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    # a commit whose sync failed may have happened, as SQLite has it; half of one has not
    for record in Records(store.database).read().records.values():
        manifest = store.manifest(store.artifact(record.id))
        assert manifest is not None, env
        assert damage(store.artifact(record.id), manifest) == {}, env
    well = Program(tmp_path / "host")
    healed = well.run(config)
    assert healed.code == 0, healed.err
    assert artifact_problems(store) == []
    assert "nothing changed" in well.run(config).out
    return False


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_our_own_calls(tmp_path: Path, config: Path, shim: Path, call: str) -> None:
    number, failed = 1, 0
    fault = {"LD_PRELOAD": str(shim), "SHIM_CALL": call, "SHIM_PATH": str(tmp_path / "host")}
    while not check(tmp_path, config, {**fault, "SHIM_FROM": str(number)}):
        failed, number = failed + 1, number * 2
    assert failed >= 3


@pytest.mark.parametrize("tool", ["mkfs.ext4", "debugfs"])
def test_the_writes_of_a_tool(tmp_path: Path, config: Path, shim: Path, tool: str) -> None:
    """e2fsprogs tries again and says nothing: the read-back must notice."""
    real = shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert real
    (tmp_path / "bin").mkdir()
    number, failed = 1, 0
    while True:
        wrapper = tmp_path / "bin" / tool
        fault = f"LD_PRELOAD={shim} SHIM_CALL=write SHIM_PATH=rootfs.ext4 SHIM_FROM={number}"
        wrapper.write_text(f'#!/bin/sh\nexport {fault}\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
        path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        if check(tmp_path, config, path):
            break
        failed, number = failed + 1, number * 2
    assert failed >= 2
