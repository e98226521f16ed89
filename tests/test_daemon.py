"""The daemon as a process: last good configuration, drift, backoff, signals, systemd."""

from __future__ import annotations

import fcntl
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import PATIENCE, Manager, watching
from support.images import directory, file, make_layout, tar
from support.program import Program
from support.registries import answer
from support.server import scripted

RETRYING = "ProgressingWithRetry"
SMALL = tar(directory("etc"), file("etc/hostname", b"guest\n"))


def config_of(path: Path, *refs: str, head: str = "", size: str = "16MiB") -> Path:
    """A configuration with one image for each reference, called a, b, ..."""
    rows = ["version = 1", "[reconcile]", 'settle = "50ms"', head]
    for number, ref in enumerate(refs):
        name = chr(ord("a") + number)
        rows += ["[[image]]", f'name = "{name}"', f'ref = "{ref}"', f'size = "{size}"']
    new = path.with_name(".new")
    new.write_text("\n".join(rows) + "\n")
    new.rename(path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


@pytest.fixture
def ref(tmp_path: Path) -> str:
    make_layout(tmp_path / "small", [SMALL])
    return f"oci:{tmp_path}/small"


@pytest.fixture
def config(tmp_path: Path, ref: str) -> Path:
    (tmp_path / "etc").mkdir()
    return config_of(tmp_path / "etc/banger.toml", ref)


@pytest.fixture
def slow(tmp_path: Path) -> str:
    """An image whose build takes long enough to be met half-way."""
    make_layout(tmp_path / "slow", [tar(*(file(f"d{n % 100}/{n}", b"x") for n in range(15_000)))])
    return f"oci:{tmp_path}/slow"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


class TestConfiguration:
    @pytest.mark.parametrize("harm", ["", "   \n", "version = ", "[[image]]\nrf = 1\n", "\xff"])
    def test_a_bad_edit_keeps_the_last_good_one(
        self, program: Program, config: Path, harm: str
    ) -> None:
        good = config.read_bytes()
        with watching(program, config) as daemon:
            daemon.wait("image.ready")
            daemon.wait("reconcile.finished")
            config.write_bytes(harm.encode("latin-1"))
            daemon.wait("config.rejected")
            daemon.signal(signal.SIGHUP)
            assert daemon.wait("reconcile.finished")["changed"] is False
            config.write_bytes(good)
            assert daemon.wait("config.loaded")["generation"] == 1
            daemon.wait("reconcile.finished")
        assert program.rootfs("a").exists()
        assert daemon.names().count("config.rejected") == 1  # once for these bytes

    def test_a_file_that_goes_and_comes_back(self, program: Program, config: Path) -> None:
        with watching(program, config) as daemon:
            daemon.wait("reconcile.finished")
            config.rename(config.with_name("away"))
            assert "does not exist" in daemon.wait("config.rejected")["message"]
            config.with_name("away").rename(config)
            daemon.wait("config.loaded")
        assert daemon.names().count("config.rejected") == 1

    @pytest.mark.parametrize("harm", ["", "version = ", None])
    def test_a_cold_start_on_a_bad_file_exits_78(
        self, program: Program, tmp_path: Path, harm: str | None
    ) -> None:
        config = tmp_path / "banger.toml"
        if harm is not None:
            config.write_text(harm)
        result = program.run("--watch", config)
        assert result.code == 78
        assert "error:" in result.err

    def test_edits_during_a_pass_are_one_more_pass(
        self, program: Program, config: Path, ref: str, slow: str
    ) -> None:
        config_of(config, slow, size="128MiB")
        with watching(program, config) as daemon:
            daemon.wait("stage.started", lambda e: e["stage"] == "flatten")
            for number in range(5):
                config_of(config, slow, head=f"# {number}", size="128MiB")
            daemon.wait("image.ready")
            daemon.wait("reconcile.finished")
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0
        assert daemon.names().count("reconcile.finished") == 2
        assert "image.failed" not in daemon.names()

    def test_an_obsolete_build_is_stopped(
        self, program: Program, config: Path, ref: str, slow: str
    ) -> None:
        config_of(config, slow, size="128MiB")
        with watching(program, config) as daemon:
            daemon.wait("stage.started", lambda e: e["stage"] == "flatten")
            config_of(config, ref)
            failed = daemon.wait("image.failed")
            assert failed["error_code"] == "interrupted"
            assert "entry changed" in failed["message"]
            daemon.wait("image.ready")
        assert "backoff.scheduled" not in daemon.names()


class TestDeleting:
    PRUNE = '[prune]\nimages = true\ngrace = "0s"\nmax = 9'

    def test_nothing_goes_while_the_file_is_rejected(
        self, program: Program, config: Path, ref: str
    ) -> None:
        """Neither an image that left the file nor an artifact that nothing refers to."""
        config_of(config, ref, ref, ref, head=self.PRUNE, size="16MiB")
        with watching(program, config) as daemon:
            daemon.wait("reconcile.finished")
            config_of(config, ref, ref, head=self.PRUNE)
            daemon.wait("reconcile.finished")  # the first pass that sees the orphan
            stray = program.state / "images" / ("0" * 32)
            stray.mkdir()
            good = config.read_bytes()
            config.write_text("version = ")
            daemon.wait("config.rejected")
            for _ in range(3):
                daemon.signal(signal.SIGHUP)
                daemon.wait("reconcile.finished")
            assert program.rootfs("c").exists()
            assert stray.exists()
            config.write_bytes(good)
            daemon.wait("image.pruned", lambda e: e["image"] == "c")
            daemon.wait("reconcile.finished")
        assert not stray.exists()


class TestDrift:
    def test_what_was_lost_comes_back_without_an_edit(self, program: Program, config: Path) -> None:
        with watching(program, config, "--interval", "300ms") as daemon:
            daemon.wait("image.ready")
            for _ in range(2):
                shutil.rmtree(program.rootfs("a").resolve().parent)
                daemon.wait("image.ready")
                assert program.rootfs("a").exists()
            with sqlite3.connect(program.state / "records.db", timeout=60) as database:
                database.execute("DELETE FROM records")
            database.close()
            daemon.wait("image.ready")
        assert list(program.run("status", "--json").images) == ["a"]


class TestFailures:
    def test_one_failure_is_its_own_and_an_edit_ends_the_wait(
        self, program: Program, config: Path, ref: str
    ) -> None:
        config_of(config, ref, "oci:/no/such/layout")
        with watching(program, config, "--interval", "1h") as daemon:
            wait = daemon.wait("backoff.scheduled")
            assert wait["image"] == "b"
            assert wait["stalled"] is True
            assert daemon.wait("reconcile.finished")["failed"] is True
            assert [e["image"] for e in daemon.events if e["event"] == "image.ready"] == ["a"]
            shown = program.run("status", "--json").images["b"]
            assert shown["next_retry_at"]
            assert "Stalled" in [c["type"] for c in shown["conditions"]]
            config_of(config, ref, ref)
            assert daemon.wait("image.ready")["image"] == "b"

    def test_what_may_pass_is_tried_again_ever_later(
        self, program: Program, config: Path, ref: str
    ) -> None:
        retry = 'retry = { base = "100ms", factor = 2, max = "1s" }'
        config_of(config, ref, "127.0.0.1:1/none:1", head=retry)
        with watching(program, config, "--interval", "1h") as daemon:
            attempts = [daemon.wait("backoff.scheduled")["attempt"] for _ in range(3)]
            assert attempts == [1, 2, 3]
            daemon.signal(signal.SIGHUP)
            daemon.wait("backoff.scheduled", lambda e: e["attempt"] == 1)

    def test_a_reload_during_a_pass_counts_for_what_failed_in_it(
        self, program: Program, config: Path, slow: str
    ) -> None:
        config_of(config, slow, "oci:/no/such/layout", size="128MiB")
        with watching(program, config, "--interval", "1h") as daemon:
            daemon.wait("image.failed", lambda e: e["image"] == "b")
            daemon.wait("stage.started", lambda e: e["stage"] == "flatten")
            daemon.signal(signal.SIGHUP)
            daemon.wait("reconcile.finished")
            daemon.wait("image.failed", lambda e: e["image"] == "b")

    def test_a_registry_that_asks_for_patience_gets_it(
        self, program: Program, config: Path
    ) -> None:
        with scripted() as script:
            busy = answer(b"", {"Retry-After": "2000"}, status=429)
            script.routes["/v2/x/manifests/1"] = busy
            retry = 'retry = { base = "100ms", factor = 2, max = "1s" }'
            registry = f'[[registry]]\nhost = "{script.host}"\nplain-http = true'
            config_of(config, f"{script.host}/x:1", head=f"{retry}\n{registry}")
            with watching(program, config) as daemon:
                wait = daemon.wait("backoff.scheduled", lambda e: "image" in e)
                assert 1900 < wait["delay_seconds"] <= 2000
                assert wait["stalled"] is False
                daemon.wait("reconcile.finished")
                shown = program.run("status", "--json").images["a"]
                kinds = {c["type"]: c["reason"] for c in shown["conditions"]}
                assert kinds == {"Ready": "RegistryUnavailable", "Reconciling": RETRYING}
                asked = len(script.seen)
                daemon.signal(signal.SIGHUP)
                daemon.wait("reconcile.finished")
                assert len(script.seen) > asked

    def test_without_descriptors_it_goes_on_and_recovers(
        self, program: Program, config: Path, manager: Manager, ref: str
    ) -> None:
        fed = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
        config_of(config, ref, head='retry = { base = "100ms", factor = 2, max = "1s" }')
        with watching(program, config, "--interval", "500ms", **fed) as daemon:
            daemon.wait("reconcile.finished")
            pid = daemon.process.pid
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
            daemon.signal(signal.SIGHUP)
            daemon.wait("reconcile.failed")
            for _ in range(30):  # more than could have been waiting in the queue
                manager.next("WATCHDOG")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            daemon.wait("config.loaded")
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0

    def test_another_writer_is_waited_for(
        self, program: Program, config: Path, ref: str, slow: str, tmp_path: Path
    ) -> None:
        retry = 'retry = { base = "100ms", factor = 2, max = "1s" }'
        config_of(config, ref, head=retry)
        other = config_of(tmp_path / "other.toml", slow, size="128MiB")
        with watching(program, config) as daemon:
            daemon.wait("reconcile.finished")
            writer = subprocess.Popen(
                program.argv("--progress", "plain", other),
                env=program.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert writer.stderr
            next(line for line in writer.stderr if "flatten:" in line)
            daemon.signal(signal.SIGHUP)
            assert str(writer.pid) in daemon.wait("lock.waiting")["message"]
            writer.communicate()
            daemon.wait("reconcile.finished")


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_an_idle_daemon_ends_well(
        self, program: Program, config: Path, number: signal.Signals
    ) -> None:
        with watching(program, config) as daemon:
            daemon.wait("reconcile.finished")
            daemon.signal(number)
            assert daemon.ended() == 0
        assert daemon.names()[-1] == "shutdown.finished"
        assert daemon.noise == []

    @pytest.mark.parametrize("stage", ["flatten", "ext4", "guest", "publish", "record"])
    def test_a_daemon_at_work_ends_well(
        self, program: Program, config: Path, slow: str, stage: str
    ) -> None:
        config_of(config, slow, size="128MiB")
        with watching(program, config) as daemon:
            daemon.wait("stage.started", lambda e: e["stage"] == stage)
            daemon.signal(signal.SIGTERM)
            begin = time.monotonic()
            assert daemon.ended() == 0
            assert time.monotonic() - begin < 60
        assert program.run(config).code == 0

    def test_a_daemon_that_waits_for_the_lock_ends_well(
        self, program: Program, config: Path
    ) -> None:
        program.state.mkdir(parents=True)
        with (program.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with watching(program, config, "--lock-timeout", "1h") as daemon:
                daemon.wait("lock.waiting")
                daemon.signal(signal.SIGTERM)
                assert daemon.ended() == 0
            assert daemon.events[-1]["clean"] is True

    def test_a_second_signal_ends_it_at_once(
        self, program: Program, config: Path, slow: str
    ) -> None:
        config_of(config, slow, size="128MiB")
        with watching(program, config) as daemon:
            daemon.wait("stage.started", lambda e: e["stage"] == "flatten")
            daemon.signal(signal.SIGTERM)
            daemon.wait("shutdown.started")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() in (0, 143)  # 0 when the first had done its work already


class TestSystemd:
    def test_ready_reload_and_stop(self, program: Program, config: Path, manager: Manager) -> None:
        with watching(program, config, NOTIFY_SOCKET=str(manager.path)) as daemon:
            assert "1 images" in manager.next("READY")["STATUS"]
            assert "image.ready" not in daemon.names()  # armed, not converged
            daemon.wait("reconcile.finished")
            config.write_text("version = ")
            daemon.wait("config.rejected")
            daemon.signal(signal.SIGHUP)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            reload = manager.next("RELOADING")
            assert abs(int(reload["MONOTONIC_USEC"]) - before) < PATIENCE * 1e6
            assert "rejected" in manager.next("READY")["STATUS"]
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            stopping = manager.next("STOPPING")
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 0
            assert daemon.ended() == 0

    def test_the_watchdog_is_fed_while_a_pass_runs(
        self, program: Program, config: Path, manager: Manager, slow: str
    ) -> None:
        config_of(config, slow, size="128MiB")
        fed = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
        with watching(program, config, **fed) as daemon:
            manager.next("READY")
            daemon.wait("stage.started", lambda e: e["stage"] == "flatten")
            for _ in range(5):
                manager.next("WATCHDOG")
            daemon.signal(signal.SIGTERM)
            manager.next("STOPPING")
            assert daemon.ended() == 0

    def test_a_watchdog_meant_for_another_process_is_not_ours(
        self, program: Program, config: Path, manager: Manager
    ) -> None:
        fed = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        with watching(program, config, **fed) as daemon:
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            manager.next("STOPPING")
            assert daemon.ended() == 0
        assert not [message for message in manager.told if "WATCHDOG" in message]
