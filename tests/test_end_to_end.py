"""From banger.toml to published, recorded images: the program as a process, on real images."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from support import unprivileged
from support.images import directory, file, make_layout, push, symlink, tar
from support.kernels import bzimage
from support.program import Program, Result, snapshot
from support.registry import RunningRegistry
from support.server import scripted

from reconciler.oci.blobs import BlobCache

BASE = tar(
    directory("etc"),
    file("etc/hostname", b"guest\n"),
    directory("usr/lib"),
    symlink("lib", "usr/lib"),
    file("usr/lib/big", bytes(range(256)) * 4096, uid=1000, gid=1000),
)
APP = tar(file("app/run", b"#!/bin/sh\n", mode=0o4755), file("etc/.wh.hostname"))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    make_layout(tmp_path / "web", [BASE, APP], tag="1")
    return tmp_path / "web"


def write_config(path: Path, *images: dict[str, Any], head: str = "") -> Path:
    rows = []
    for image in images:
        pairs = {"size": "64MiB", **image}
        rows += ["[[image]]", *(f"{key} = {json.dumps(value)}" for key, value in pairs.items()), ""]
    path.write_text("version = 1\n" + head + "\n" + "\n".join(rows))
    return path


@pytest.fixture
def config(tmp_path: Path, layout: Path) -> Path:
    return write_config(tmp_path / "banger.toml", {"name": "web", "ref": f"oci:{layout}:1"})


def ran(program: Program, config: Path, name: str = "web") -> str:
    """Run a pass; the stages that ran for an image."""
    result = program.run(config, "--json")
    assert result.code == 0, result.err
    stages = result.images[name]["stages"]
    assert all(s["status"] == "ok" for s in stages if s["action"] == "run")
    return " ".join(s["name"] for s in stages if s["action"] == "run")


def e2fsck(image: Path) -> None:
    found = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


FROM_EXT4 = "ext4 guest publish record"
"""With the direct builder, which writes owners with everything else."""


class TestFirstLight:
    def test_an_image_becomes_a_recorded_artifact(self, program: Program, config: Path) -> None:
        result = program.run(config)
        assert result.code == 0, result.err
        assert "1 created" in result.out
        assert "warning" not in result.out
        assert str(program.state / "images") in result.out
        e2fsck(program.rootfs("web"))
        assert program.rootfs("web").stat().st_size == 64 << 20
        status = program.run("status", "--json").images["web"]
        assert status["conditions"][0]["status"] == "True"

    def test_a_new_host_has_lost_nothing(self, program: Program, config: Path) -> None:
        first = program.run(config, "--log-level", "debug")
        assert first.code == 0
        assert "damaged" not in first.out + first.err
        assert [path.name for path in program.state.glob("records*")] == ["records.db"]

    def test_a_second_run_says_so_and_touches_no_file(self, program: Program, config: Path) -> None:
        program.run(config)
        before = snapshot(program.root)
        result = program.run(config)
        assert result.code == 0
        assert "nothing changed" in result.out
        assert snapshot(program.root) == before
        assert program.run(config, "--json").document["changed"] is False

    def test_plan_writes_nothing_and_gives_a_reason_for_every_stage(
        self, program: Program, config: Path
    ) -> None:
        result = program.run("plan", config, "--json")
        assert result.code == 0, result.err
        assert result.document["changed"] is True
        assert all(stage["reason"] for stage in result.images["web"]["stages"])
        assert not program.state.exists()
        assert "ext4" in program.run("-n", config).out

    def test_the_same_inputs_give_the_same_id_and_bytes_on_another_host(
        self, tmp_path: Path, config: Path
    ) -> None:
        hosts = Program(tmp_path / "one"), Program(tmp_path / "two")
        first, second = (host.run(config, "--json").images["web"] for host in hosts)
        assert first["id"] == second["id"]
        images = [host.rootfs("web").read_bytes() for host in hosts]
        assert images[0] == images[1]

    def test_nothing_is_left_in_scratch_or_staging(self, program: Program, config: Path) -> None:
        program.run(config)
        names = [p.name for p in (program.state / "images").iterdir()]
        assert not [name for name in names if name.endswith(".staging")]
        assert not [p for p in (program.root / "tmp").rglob("*") if p.is_file()]


class TestOnlyWhatIsMissingRuns:
    def test_no_record_but_a_whole_artifact(self, program: Program, config: Path) -> None:
        ran(program, config)
        with sqlite3.connect(program.state / "records.db") as database:
            database.execute("DELETE FROM records")
        database.close()
        assert ran(program, config) == "record"

    def test_the_whole_database_lost(self, program: Program, config: Path) -> None:
        ran(program, config)
        (program.state / "records.db").unlink()
        result = program.run(config, "--json")
        assert result.images["web"]["reason"] == "RecordMissing"
        assert program.run("status", "--json").images["web"]["ref"].startswith("oci:")
        assert ran(program, config) == ""

    def test_a_garbage_database_is_kept_aside(self, program: Program, config: Path) -> None:
        ran(program, config)
        (program.state / "records.db").write_bytes(b"garbage" * 1000)
        assert ran(program, config) == "record"
        assert (program.state / "records.db.damaged").read_bytes().startswith(b"garbage")

    def test_a_new_name(self, program: Program, config: Path, layout: Path) -> None:
        ran(program, config)
        write_config(config, {"name": "www", "ref": f"oci:{layout}:1"})
        assert ran(program, config, "www") == "record"
        assert list(program.run("status", "--json").images) == ["www"]
        assert not (program.state / "images/by-name/web").is_symlink()

    def test_a_new_tag_of_the_same_digest(
        self, program: Program, config: Path, layout: Path
    ) -> None:
        ran(program, config)
        make_layout(layout, [BASE, APP], tag="2")
        write_config(config, {"name": "web", "ref": f"oci:{layout}:2"})
        result = program.run(config, "--json")
        assert result.document["changed"] is False
        assert program.run("status", "--json").images["web"]["ref"].endswith(":2")

    def test_a_new_size(self, program: Program, config: Path, layout: Path) -> None:
        ran(program, config)
        write_config(config, {"name": "web", "ref": f"oci:{layout}:1", "size": "80MiB"})
        assert ran(program, config) == f"flatten {FROM_EXT4}"
        assert program.rootfs("web").stat().st_size == 80 << 20

    @pytest.mark.parametrize("harm", ["truncate", "edit", "delete"])
    def test_a_damaged_artifact(self, program: Program, config: Path, harm: str) -> None:
        ran(program, config)
        rootfs = program.rootfs("web")
        whole = rootfs.read_bytes()
        rootfs.chmod(0o644)
        if harm == "truncate":
            rootfs.write_bytes(whole[:5000])
        elif harm == "edit":
            rootfs.write_bytes(whole[:-1] + b"x")
        else:
            rootfs.unlink()
        result = program.run(config, "--json")
        assert result.images["web"]["reason"] == "ArtifactCorrupt"
        assert program.rootfs("web").read_bytes() == whole
        assert ran(program, config) == ""

    def test_an_artifact_restored_from_a_backup_is_believed_after_a_look(
        self, program: Program, config: Path
    ) -> None:
        ran(program, config)
        rootfs = program.rootfs("web")
        data = rootfs.read_bytes()
        rootfs.unlink()
        rootfs.write_bytes(data)
        result = program.run(config, "--json")
        assert result.document["changed"] is False

    def test_a_damaged_artifact_that_a_guest_runs_from_is_flagged_not_replaced(
        self, program: Program, config: Path
    ) -> None:
        ran(program, config)
        rootfs = program.rootfs("web")
        rootfs.chmod(0o644)
        with rootfs.open("r+b") as guest:
            guest.seek(30 << 20)
            guest.write(b"the guest writes")
            guest.flush()
            result = program.run(config, "--json")
            assert result.images["web"]["reason"] == "InUse"
            assert "guest" in result.document["warnings"][0]
            guest.seek(30 << 20)
            assert guest.read(16) == b"the guest writes"

    def test_a_corrupt_cached_blob_is_fetched_again(
        self, program: Program, config: Path, layout: Path
    ) -> None:
        ran(program, config)
        blobs = program.cache / "oci" / "blobs" / "sha256"
        manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        document = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())
        blob = blobs / document["layers"][0]["digest"].partition(":")[2]
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.chmod(0o644)
        blob.write_bytes(data)
        write_config(config, {"name": "web", "ref": f"oci:{layout}:1", "size": "80MiB"})
        result = program.run(config, "--json")
        assert result.code == 0, result.err
        assert BlobCache(program.cache / "oci").path(document["layers"][0]["digest"]).exists()
        e2fsck(program.rootfs("web"))


class TestRegistry:
    def test_a_moved_tag_fetches_only_the_new_layer(
        self, program: Program, tmp_path: Path, registry: RunningRegistry
    ) -> None:
        name = f"moved/{tmp_path.name.lower()}"
        make_layout(tmp_path / "l", [BASE, APP])
        push(tmp_path / "l", registry, name, "1")
        head = f'[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
        image = {"name": "web", "ref": f"{registry.host}/{name}:1"}
        config = write_config(tmp_path / "banger.toml", image, head=head)
        assert ran(program, config) == f"pull flatten {FROM_EXT4}"
        assert ran(program, config) == ""

        make_layout(tmp_path / "l", [BASE, tar(file("app/run", b"new"))])
        push(tmp_path / "l", registry, name, "1")
        result = program.run(config, "--json")
        assert result.images["web"]["reason"] == "DigestChanged"
        (pull,) = (s for s in result.images["web"]["stages"] if s["name"] == "pull")
        assert pull["reason"] == "1 of 2 layer blobs are not cached"

    def test_no_such_tag_leaves_the_published_artifact_and_the_other_images(
        self, program: Program, tmp_path: Path, registry: RunningRegistry, layout: Path
    ) -> None:
        head = f'[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
        bad = {"name": "bad", "ref": f"{registry.host}/nobody/nothing:9"}
        good = {"name": "web", "ref": f"oci:{layout}:1"}
        config = write_config(tmp_path / "banger.toml", bad, good, head=head)
        result = program.run(config, "--json")
        assert result.code == 1
        assert result.images["bad"]["error"]["code"] == "not-found"
        assert result.images["bad"]["error"]["retryable"] is False
        assert result.images["web"]["error"] is None
        assert result.document["partial"] is True
        e2fsck(program.rootfs("web"))


class TestBuilder:
    def test_another_builder_is_another_recipe(
        self, program: Program, tmp_path: Path, layout: Path
    ) -> None:
        ids = []
        for builder in ("tools", "direct"):
            image = {"name": "web", "ref": f"oci:{layout}:1", "builder": builder}
            config = write_config(tmp_path / "banger.toml", image)
            result = program.run(config, "--json")
            assert result.code == 0, result.err
            e2fsck(program.rootfs("web"))
            ids.append(result.images["web"]["id"])
        assert ids[0] != ids[1]
        assert result.images["web"]["reason"] == "RecipeChanged"

    def test_auto_is_the_direct_one_where_the_library_is(
        self, program: Program, tmp_path: Path, layout: Path
    ) -> None:
        image = {"name": "web", "ref": f"oci:{layout}:1", "builder": "direct"}
        program.run(write_config(tmp_path / "banger.toml", image))
        image["builder"] = "auto"
        assert ran(program, write_config(tmp_path / "banger.toml", image)) == ""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    return tmp_path / "vmlinuz"


class TestKernel:
    def config(self, tmp_path: Path, layout: Path, kernel: Path, **image: str) -> Path:
        head = f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{kernel}" }}\n'
        entry = {"name": "web", "ref": f"oci:{layout}:1", "kernel-ref": "lab", **image}
        return write_config(tmp_path / "banger.toml", entry, head=head)

    def test_a_new_kernel_costs_a_clone(
        self, program: Program, tmp_path: Path, layout: Path, kernel: Path
    ) -> None:
        config = self.config(tmp_path, layout, kernel)
        assert ran(program, config) == f"pull flatten {FROM_EXT4}".replace(
            "publish", "kernel publish"
        )
        before = program.rootfs("web").read_bytes()
        kernel.write_bytes(bzimage(body=b"newer"))
        assert ran(program, config) == "kernel publish record"
        assert program.rootfs("web").read_bytes() == before
        assert (program.rootfs("web").parent / "kernel").read_bytes() == bzimage(body=b"newer")

    def test_a_kernel_that_went_missing_comes_back(
        self, program: Program, tmp_path: Path, layout: Path, kernel: Path
    ) -> None:
        config = self.config(tmp_path, layout, kernel)
        ran(program, config)
        (program.rootfs("web").parent / "kernel").unlink()
        assert ran(program, config) == "kernel publish record"
        assert ran(program, config) == ""

    def test_no_such_kernel_names_those_there_are(
        self, program: Program, tmp_path: Path, layout: Path, kernel: Path
    ) -> None:
        config = self.config(tmp_path, layout, kernel, **{"kernel-ref": "lob"})
        result = program.run(config, "--json")
        assert result.code == 1
        error = result.images["web"]["error"]
        assert error["code"] == "kernel-not-found"
        assert "lab" in error["message"] + error["hint"]


class TestCollection:
    def test_the_artifact_before_last_goes_and_the_last_stays(
        self, program: Program, config: Path, layout: Path
    ) -> None:
        ids = []
        for size in ("64MiB", "80MiB", "96MiB"):
            write_config(config, {"name": "web", "ref": f"oci:{layout}:1", "size": size})
            ids.append(program.run(config, "--json").images["web"]["id"])
        left = {p.name for p in (program.state / "images").iterdir() if p.name != "by-name"}
        assert left == set(ids[1:])

    def test_what_a_process_has_open_is_kept(
        self, program: Program, config: Path, layout: Path
    ) -> None:
        first = program.run(config, "--json").images["web"]["path"]
        with Path(first, "rootfs.ext4").open("rb"):
            for size in ("80MiB", "96MiB"):
                write_config(config, {"name": "web", "ref": f"oci:{layout}:1", "size": size})
                result = program.run(config, "--json")
            assert Path(first).exists()
            assert any("guest" in warning for warning in result.document["warnings"])
        assert program.run("gc", "--json").document["gc"]["artifacts_removed"] == 1
        assert not Path(first).exists()

    def test_gc_dry_run_names_things_and_removes_none(
        self, program: Program, config: Path, tmp_path: Path
    ) -> None:
        program.run(config)
        blob = program.cache / "oci/blobs/sha256" / ("ab" * 32)
        blob.write_bytes(b"x" * 5000)
        old = time.time() - 48 * 3600
        os.utime(blob, (old, old))
        result = program.run("gc", "--dry-run", "--json")
        assert [r["path"] for r in result.document["removed"]] == [str(blob)]
        assert result.document["gc"]["bytes_freed"] == 8192
        assert blob.exists()
        assert "8.0 KiB" in program.run("gc").out
        assert not blob.exists()

    def test_an_image_that_left_the_config_is_kept_and_reported(
        self, program: Program, config: Path
    ) -> None:
        program.run(config)
        write_config(config)
        result = program.run(config, "--json")
        assert result.images["web"]["action"] == "orphan"
        assert program.rootfs("web").exists()

    def test_a_config_that_does_not_parse_collects_nothing(
        self, program: Program, config: Path
    ) -> None:
        program.run(config)
        stale = program.state / "images" / ("0" * 32 + ".staging")
        stale.mkdir()
        os.utime(stale, (0, 0))
        config.write_text("[[image]\n")
        assert program.run(config).code == 78
        assert stale.exists()


class TestBadInput:
    def test_a_size_too_small_names_the_number_that_does(
        self, program: Program, config: Path, layout: Path, tmp_path: Path
    ) -> None:
        make_layout(tmp_path / "other", [BASE])
        tight = {"name": "tight", "ref": f"oci:{layout}:1", "size": "2MiB"}
        write_config(config, tight, {"name": "other", "ref": f"oci:{tmp_path}/other"})
        result = program.run(config, "--json")
        assert result.code == 1
        error = result.images["tight"]["error"]
        assert error["code"] == "size-too-small"
        assert result.images["other"]["error"] is None
        images = program.state / "images"
        assert len([p for p in images.iterdir() if p.name != "by-name"]) == 1

        said = error["message"] + " " + error["hint"]
        enough = next(
            word
            for word in said.replace(",", " ").split()
            if word.endswith("MiB") and word != "2MiB"
        ).strip(".")
        write_config(config, {**tight, "size": enough})
        assert program.run(config).code == 0

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("version = 1\n[[image]\nname = 1", ":2:8:"),
            ('version = 1\n[[image]]\nref = "oci:x:1"\nkernel_ref = "a"', "kernel-ref"),
            ('version = 1\n[[image]]\nref = "oci:x:1"\nsize = "4Gx"', "4Gx"),
            ("version = 99", "version"),
            ("\x00\xff", ""),
        ],
    )
    def test_a_wrong_configuration_exits_78_and_says_where(
        self, program: Program, tmp_path: Path, text: str, word: str
    ) -> None:
        path = tmp_path / "banger.toml"
        path.write_bytes(text.encode("latin-1"))
        for words in ((path,), ("plan", path), ("validate", path)):
            result = program.run(*words)
            assert result.code == 78
            assert word in result.err
            assert "Traceback" not in result.err
        document = program.run(path, "--json").document
        assert document["failed"] is True
        assert not program.state.exists()

    def test_all_errors_at_once(self, program: Program) -> None:
        text = 'version = 1\nfoo = 1\n[[image]]\nname = "UP"\nsize = 5.5\n'
        result = program.run("validate", "-", stdin=text)
        assert result.code == 78
        for word in ("foo", "UP", "size", "ref"):
            assert word in result.err

    @pytest.mark.parametrize("words", [("--nonsense", "x"), (), ("plan",), ("gc", "--jobs", "0")])
    def test_wrong_usage_exits_64(self, program: Program, words: tuple[str, ...]) -> None:
        assert program.run(*words).code == 64

    def test_a_missing_file_exits_78(self, program: Program, tmp_path: Path) -> None:
        result = program.run(tmp_path / "none.toml")
        assert result.code == 78
        assert "none.toml" in result.err

    def test_another_writer(self, program: Program, config: Path) -> None:
        program.run(config)
        lock = program.state / "lock"
        with subprocess.Popen(
            ["flock", lock, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as holder:
            time.sleep(0.3)
            result = program.run(config)
            assert result.code == 75
            assert "flock" in result.err or "cat" in result.err
            assert program.run("plan", config).code == 0
            assert program.run("status").code == 0
            holder.kill()


def with_mke2fs(program: Program, config: Path, stand_in: str, mode: int) -> Result:
    """A pass on a machine whose mke2fs is `stand_in`, in a mount namespace of its own.

    The real one is to be found beside it, as mke2fs.real.
    """
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root here")
    fake = program.root / "mke2fs"
    fake.write_text(stand_in)
    fake.chmod(mode)
    real = Path(shutil.which("mke2fs", path="/usr/sbin:/sbin") or "").resolve()
    shutil.copy(real, program.root / "mke2fs.real")
    argv = shlex.join(program.argv(config, "--json"))
    script = f"mount --bind {fake} {real} && exec {argv}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=program.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


class TestHost:
    """What the machine lacks, said plainly."""

    def test_e2fsprogs_missing(self, program: Program, config: Path) -> None:
        result = with_mke2fs(program, config, "", 0o644)
        assert result.code == 1
        error = result.images["web"]["error"]
        assert error["code"] == "tool-missing"
        assert "e2fsprogs" in error["message"] + error["hint"]
        assert not list((program.state / "images").glob("*.staging"))

    def test_e2fsprogs_too_old(self, program: Program, config: Path) -> None:
        old = "#!/bin/sh\necho 'mke2fs 1.42.13 (17-May-2015)' >&2\n"
        result = with_mke2fs(program, config, old, 0o755)
        assert result.code == 1
        error = result.images["web"]["error"]
        assert error["code"] == "tool-too-old"
        assert "1.43" in error["message"] + error["hint"]
        assert not list((program.state / "images").glob("*.staging"))

    def test_no_write_permission(self, tmp_path: Path, layout: Path) -> None:
        with unprivileged.home() as home:
            shutil.copytree(layout, home / "web")
            (home / "locked").mkdir(mode=0o555)
            config = write_config(home / "banger.toml", {"name": "web", "ref": "oci:web:1"})
            argv = [sys.executable, "-m", "reconciler", "--state-dir", "locked/state", config]
            env = {"PYTHONPATH": str(Path(__file__).parent.parent)}
            result = unprivileged.run(argv, home, env)
            assert result.returncode == 1
            assert "locked" in result.stderr
            assert "Traceback" not in result.stderr
            assert not list((home / "locked").iterdir())


class TestTerminal:
    def on_a_terminal(self, program: Program, config: Path, **env: str) -> str:
        """What a pass writes to a terminal of 100 columns."""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**program.environment, "TERM": "xterm", **env}
        with subprocess.Popen(
            program.argv(config), env=environment, stdout=follower, stderr=follower
        ) as child:
            os.close(follower)
            said = b""
            with contextlib.suppress(OSError):  # the last reader of a terminal gets EIO
                while piece := os.read(leader, 65536):
                    said += piece
            os.close(leader)
        assert child.returncode == 0
        return said.decode()

    def test_stages_and_layers_are_drawn(self, program: Program, config: Path) -> None:
        said = self.on_a_terminal(program, config)
        for word in ("web  pull", "web  flatten", "web  ext4", "web: ready", "1 created"):
            assert word in said
        assert "\x1b[3" in said

    @pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_no_colour_where_none_is_wanted(
        self, program: Program, config: Path, env: dict[str, str]
    ) -> None:
        said = self.on_a_terminal(program, config, **env)
        assert "1 created" in said
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", said)

    def test_no_escape_leaves_a_pipe(self, program: Program, config: Path) -> None:
        result = program.run(config)
        assert "\x1b" not in result.out + result.err
        assert "\x1b[" in program.run(config, "--color", "always").out

    def test_json_progress_is_one_event_a_line(self, program: Program, config: Path) -> None:
        result = program.run(config, "--progress", "json", "--json")
        events = [json.loads(line) for line in result.err.splitlines()]
        names = [event["event"] for event in events]
        assert names[0] == "config.loaded"
        assert names[-1] == "reconcile.finished"
        assert {"stage.started", "stage.finished", "image.ready"} <= set(names)
        assert all(event["timestamp"].endswith("Z") for event in events)

    def test_the_log_is_json_off_a_terminal(self, program: Program, config: Path) -> None:
        result = program.run(config, "--progress", "none", "--log-level", "info")
        events = [json.loads(line) for line in result.err.splitlines()]
        assert {"config.loaded", "plan.computed", "reconcile.finished"} <= {
            event["event"] for event in events
        }


class TestInterruption:
    def test_a_signal_stops_the_pass_and_the_next_one_converges(
        self, program: Program, tmp_path: Path
    ) -> None:
        many = tar(*(file(f"d{n % 100}/{n}", b"%d" % n) for n in range(15_000)))
        make_layout(tmp_path / "slow", [many])
        image = {"name": "web", "ref": f"oci:{tmp_path}/slow", "size": "256MiB"}
        config = write_config(tmp_path / "banger.toml", image)
        child = subprocess.Popen(
            program.argv("--progress", "plain", config),
            env=program.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr
        for line in child.stderr:
            if "flatten:" in line:
                break
        child.send_signal(signal.SIGTERM)
        child.communicate()
        assert child.returncode == 143
        assert program.run(config).code == 0
        e2fsck(program.rootfs("web"))

    def test_killed_in_ext4_the_build_goes_on_from_the_whole_tree(
        self, program: Program, tmp_path: Path, layout: Path
    ) -> None:
        image = {"name": "web", "ref": f"oci:{layout}:1", "builder": "tools"}
        config = write_config(tmp_path / "banger.toml", image)
        real = program.root / "mke2fs.real"
        deadly = f'#!/bin/sh\n[ "$1" = -V ] && exec {real} -V\nkill -9 $PPID\n'
        assert with_mke2fs(program, config, deadly, 0o755).code == -signal.SIGKILL
        assert ran(program, config) == "ext4 ownership guest publish record"
        e2fsck(program.rootfs("web"))

    def test_a_kernel_that_could_not_be_fetched_does_not_cost_the_rootfs(
        self, program: Program, tmp_path: Path, layout: Path
    ) -> None:
        kernel = bzimage()
        with scripted({"/vmlinuz": lambda request: request.reply(503)}) as server:
            url, pin = f"http://{server.host}/vmlinuz", hashlib.sha256(kernel).hexdigest()
            source = f'kernel = {{ url = "{url}", sha256 = "{pin}" }}'
            head = f'[[kernel]]\nname = "lab"\n{source}\n'
            image = {"name": "web", "ref": f"oci:{layout}:1", "kernel-ref": "lab"}
            config = write_config(tmp_path / "banger.toml", image, head=head)
            result = program.run(config, "--json")
            assert result.code == 1
            assert result.images["web"]["error"]["stage"] == "kernel"
            assert result.images["web"]["error"]["retryable"] is True
            server.routes["/vmlinuz"] = lambda request: request.reply(200, kernel)
            assert ran(program, config) == "kernel publish record"
            assert (program.rootfs("web").parent / "kernel").read_bytes() == kernel

    def test_kill_leaves_what_the_next_pass_heals(self, program: Program, config: Path) -> None:
        for delay in (0.6, 0.8, 1.0, 1.2):
            shutil.rmtree(program.state, ignore_errors=True)
            child = subprocess.Popen(
                program.argv(config),
                env=program.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(delay)
            child.kill()
            child.wait()
            result = program.run(config)
            assert result.code == 0, result.err
            e2fsck(program.rootfs("web"))
            assert "nothing changed" in program.run(config).out
