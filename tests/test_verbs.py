"""The verbs beside a pass, as their users run them; and what happens to images that leave."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.program import Program
from test_daemon import config_of

SMALL = tar(directory("etc"), file("etc/hostname", b"guest\n"))
NOW = '[prune]\nimages = true\ngrace = "0s"\nmax = "50%"'


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


@pytest.fixture
def ref(tmp_path: Path) -> str:
    make_layout(tmp_path / "small", [SMALL])
    return f"oci:{tmp_path}/small"


@pytest.fixture
def config(tmp_path: Path, ref: str) -> Path:
    return config_of(tmp_path / "banger.toml", ref, ref)


class TestLeaving:
    def test_pruned_on_the_second_pass_that_sees_it(
        self, program: Program, config: Path, ref: str
    ) -> None:
        program.run(config)
        config_of(config, ref, head=NOW)
        first = program.run(config, "--json")
        assert first.code == 0
        assert first.images["b"]["action"] == "orphan"
        preview = program.run("plan", config, "--json")
        assert preview.images["b"]["action"] == "prune"
        second = program.run(config, "--json", "--detailed-exitcode")
        assert second.code == 2
        assert second.document["summary"]["pruned"] == 1
        assert list(program.run("status", "--json").images) == ["a"]
        assert not (program.state / "images/by-name/b").is_symlink()
        assert program.run(config, "--json", "--detailed-exitcode").code == 0

    def test_nothing_left_in_the_file_is_blocked_and_says_how_to_lift_it(
        self, program: Program, config: Path
    ) -> None:
        program.run(config)
        config_of(config, head=NOW)
        program.run(config)
        blocked = program.run(config, "--json")
        assert blocked.code == 1
        assert "--allow-empty" in blocked.document["errors"][0]["hint"]
        assert blocked.images["a"]["reason"] == "PruneBlockedEmpty"
        assert program.rootfs("a").exists()
        # two of two are more than half: the other guard
        assert "max" in program.run(config, "--allow-empty").out
        config_of(config, head=NOW.replace("50%", "100%"))
        assert program.run(config, "--allow-empty").code == 0
        assert program.run("status", "--json").images == {}

    def test_no_prune_and_image_keep_it(self, program: Program, config: Path, ref: str) -> None:
        program.run(config)
        config_of(config, ref, head=NOW)
        program.run(config, "--no-prune")
        program.run(config, "--image", "a")
        assert program.run(config, "--no-prune", "--json").images["b"]["action"] == "orphan"
        assert program.rootfs("b").exists()

    def test_protection_outlives_the_entry(self, program: Program, config: Path, ref: str) -> None:
        text = config.read_text() + "protect = true\n"
        config.write_text(text)
        program.run(config)
        config_of(config, ref, head=NOW)
        for _ in range(3):
            assert program.run(config).code == 0
        assert program.run(config, "--json").images["b"]["reason"] == "Protected"
        refused = program.run("rm", "b")
        assert refused.code == 1
        assert "--protected" in refused.err
        assert program.run("rm", "b", "--protected").code == 0
        assert list(program.run("status", "--json").images) == ["a"]

    def test_a_lost_database_makes_nobody_unprotected(
        self, program: Program, config: Path, ref: str
    ) -> None:
        config.write_text(config.read_text() + "protect = true\n")
        program.run(config)
        config_of(config, ref, head=NOW)
        for path in program.state.glob("records.db*"):
            path.unlink()
        for _ in range(3):
            assert program.run(config, "--json").images["b"]["reason"] == "Protected"
        assert program.rootfs("b").exists()
        assert program.run("status", "--json").images["a"]["protect"] is False

    def test_what_a_guest_runs_from_keeps_its_name_until_the_guest_ends(
        self, program: Program, config: Path, ref: str
    ) -> None:
        config_of(config, ref, f"{ref}", size="20MiB")
        config.write_text(config.read_text().replace("20MiB", "16MiB", 1))
        program.run(config)
        config_of(config, ref, head=NOW)
        with program.rootfs("b").open("rb"):
            for _ in range(3):
                kept = program.run(config, "--json")
            assert (kept.code, kept.images["b"]["reason"]) == (0, "InUse")
            assert program.rootfs("b").exists()
        assert program.run(config, "--json").images["b"]["action"] == "prune"
        assert not program.rootfs("b").exists()

    def test_a_grace_begins_when_pruning_does(
        self, program: Program, config: Path, ref: str
    ) -> None:
        """What was an orphan once, and wanted since, is not owed to an old note."""
        program.run(config)
        config_of(config, ref, head=NOW)
        program.run(config)
        config_of(config, ref, ref)
        program.run(config)
        config_of(config, ref, head=NOW)
        assert program.run(config, "--json").images["b"]["action"] == "orphan"
        assert program.run(config, "--json").images["b"]["action"] == "prune"


class TestByHand:
    def test_rm_of_an_unknown_name_names_those_there_are(
        self, program: Program, config: Path
    ) -> None:
        program.run(config)
        result = program.run("rm", "nobody", "--json")
        assert result.code == 1
        assert result.document["errors"][0]["code"] == "not-found"
        assert "a, b" in result.err

    def test_rollback_holds_until_resume(
        self, program: Program, config: Path, ref: str, tmp_path: Path
    ) -> None:
        program.run(config)
        before = program.rootfs("a").resolve()
        make_layout(tmp_path / "small", [SMALL, tar(file("etc/new", b"new"))])
        program.run(config)
        after = program.rootfs("a").resolve()
        assert before != after
        assert program.run("rollback", "a").code == 0
        assert program.rootfs("a").resolve() == before
        held = program.run(config, "--json")
        assert held.images["a"]["action"] == "suspend"
        assert "rolled back" in program.run("plan", config, "--json", "-v").out
        assert program.rootfs("a").resolve() == before
        assert program.run("resume", "a").code == 0
        assert program.run(config).code == 0
        assert program.rootfs("a").resolve() == after

    def test_rollback_without_an_earlier_artifact(self, program: Program, config: Path) -> None:
        program.run(config)
        result = program.run("rollback", "a")
        assert result.code == 1
        assert "retain" in result.err

    def test_a_suspended_image_is_not_touched(
        self, program: Program, config: Path, ref: str
    ) -> None:
        program.run(config)
        assert program.run("suspend", "a", "--reason", "an experiment").code == 0
        config_of(config, ref, ref, size="20MiB")
        result = program.run(config, "--json")
        assert result.images["a"]["action"] == "suspend"
        assert result.images["b"]["action"] == "update"
        assert program.rootfs("a").stat().st_size == 16 << 20
        assert program.run("resume").code == 0
        assert program.run(config, "--json").images["a"]["action"] == "update"

    def test_everything_suspended(self, program: Program, config: Path, ref: str) -> None:
        program.run(config)
        program.run("suspend", "--reason", "holidays")
        config_of(config, ref, head=NOW)
        for _ in range(3):
            result = program.run(config, "--json")
        assert {i["action"] for i in result.images.values()} == {"suspend"}
        assert program.rootfs("b").exists()

    def test_verify_finds_a_flipped_byte(self, program: Program, config: Path, ref: str) -> None:
        config_of(config, ref)
        program.run(config)
        assert program.run("verify").code == 0
        rootfs = program.rootfs("a")
        rootfs.chmod(0o644)
        with rootfs.open("r+b") as stream:
            stream.seek(5000)
            stream.write(b"x")
        result = program.run("verify", "a", "--json")
        assert result.code == 1
        assert "rootfs.ext4" in result.images["a"]["problems"]
        assert program.run("verify", "nobody").code == 1

    def test_explain_names_the_input(self, program: Program, config: Path, ref: str) -> None:
        program.run(config)
        config_of(config, ref, ref, size="20MiB")
        document = program.run("explain", "a", config, "--json").document
        assert document["reason"] == "SizeChanged"
        changed = [one["input"] for one in document["inputs"] if one["changed"]]
        assert changed[0] == "key of ext4"
        runs = [stage["name"] for stage in document["stages"] if stage["action"] == "run"]
        assert "ext4" in runs
        assert "pull" not in runs
        assert program.run("explain", "nobody", config).code == 1


class TestOptions:
    def test_image_touches_nothing_else(self, program: Program, config: Path) -> None:
        result = program.run(config, "--image", "a", "--json")
        assert list(result.images) == ["a"]
        assert list(program.run("status", "--json").images) == ["a"]

    def test_a_build_that_takes_too_long_is_stopped(self, program: Program, config: Path) -> None:
        result = program.run(config, "--timeout", "1ms", "--json")
        assert result.code == 1
        assert result.images["a"]["error"]["code"] == "timeout"
        assert program.run(config).code == 0

    def test_fail_fast_begins_nothing_after_a_failure(
        self, program: Program, config: Path, ref: str
    ) -> None:
        config_of(config, "oci:/no/such", ref)
        result = program.run(config, "--fail-fast", "--jobs", "1", "--json")
        assert result.code == 1
        assert result.images["b"]["error"]["code"] == "interrupted"
        assert program.run(config, "--jobs", "1", "--detailed-exitcode").code == 6
        assert program.run(config, "--jobs", "1", "--detailed-exitcode").code == 4

    def test_a_duration_without_a_unit_is_wrong_usage(self, program: Program, config: Path) -> None:
        result = program.run(config, "--timeout", "30")
        assert result.code == 64
        assert "30s" in result.err

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion_scripts_name_the_program(self, program: Program, shell: str) -> None:
        result = program.run("completion", shell)
        assert result.code == 0
        assert "_BANGER_RECONCILE_COMPLETE" in result.out

    def test_a_shell_that_asks_gets_the_verbs(self, program: Program) -> None:
        program.env = {
            "_BANGER_RECONCILE_COMPLETE": "bash_complete",
            "COMP_WORDS": "banger-reconcile st",
            "COMP_CWORD": "1",
        }
        assert "status" in program.run().out


def test_a_lost_database_forgets_no_suspension(program: Program, config: Path) -> None:
    program.run(config)
    program.run("suspend", "a", "--reason", "kept")
    for path in program.state.glob("records.db*"):
        path.unlink()
    shutil.rmtree(program.root / "tmp")
    (program.root / "tmp").mkdir()
    assert program.run(config, "--json").images["a"]["action"] == "suspend"


class TestSlips:
    """What an unset variable, a typing error or a full disk makes of a command."""

    @pytest.mark.parametrize(
        "words",
        [
            ("--state-dir", "", "status"),
            ("--cache-dir", "", "status"),
            ("rm", ""),
            ("rm", "../a"),
            ("suspend", "*", "--reason", "x"),
            ("suspend", "a", "--reason", " "),
            ("verify", "A B"),
            ("status", "--metrics-file", ""),
        ],
    )
    def test_wrong_usage_touches_nothing(self, program: Program, words: tuple[str, ...]) -> None:
        assert program.run(*words).code == 64
        assert not program.state.exists()

    def test_a_suspension_shows_whatever_was_suspended(self, program: Program) -> None:
        assert "nothing is recorded" in program.run("suspend", "later", "--reason", "a\x1b[31m").out
        shown = program.run("status", "--json").images["later"]
        assert shown["suspended"] == "a\\x1b[31m"
        program.run("suspend", "--reason", "holidays")
        assert "every image is suspended: holidays" in program.run("status").out

    @pytest.mark.parametrize("words", [(), ("--json",)])
    def test_a_full_disk_for_the_output_is_told(
        self, program: Program, words: tuple[str, ...]
    ) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                program.argv("status", *words),
                env=program.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
