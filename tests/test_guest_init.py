"""The image's program as `run` and PID 1 start it: in a root of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.guest import SHIPPED

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroot and namespaces")

MOUNTS = """
set -e
mount --make-rprivate /
cd "$1"
mount --rbind /usr usr
mount -t proc proc proc
mount --bind cmdline proc/cmdline
"""

# PID 1 of a PID namespace: reboot(2) there ends the namespace with a signal, nothing more.
LAUNCH = f"{MOUNTS} exec chroot . /sbin/init"


@dataclass
class Root:
    """The root of a guest, with the host's /usr."""

    path: Path

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def configure(self, **config: Any) -> None:
        self.write("etc/banger/image.json", json.dumps(config))

    def run(self) -> subprocess.CompletedProcess[str]:
        script = f"{MOUNTS} exec chroot . /banger-guest run"
        return self._start(["unshare", "-m", "sh", "-c", script, "sh", str(self.path)])

    def boot(self, then: str = "") -> subprocess.CompletedProcess[str]:
        """Start PID 1; `then` is a shell script beside it, with $pid set to its process."""
        launch = ["unshare", "-mnupf", "--kill-child", "sh", "-c", LAUNCH, "sh", str(self.path)]
        if not then:
            return self._start(launch)
        script = f'"$@" & over=$!; {then}; wait $over'
        return self._start(["sh", "-c", script, "sh", *launch])

    def _start(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(params=["shipped", "sanitized"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    program = SHIPPED if request.param == "shipped" else request.getfixturevalue("sanitized")
    made = Root(tmp_path / "root")
    for folder in ("usr", "proc", "sys", "dev", "run", "tmp", "sbin-own", "var/lib/banger"):
        (made.path / folder).mkdir(parents=True)
    (made.path / "sbin-own").rename(made.path / "sbin")
    for name in ("bin", "lib", "lib64"):
        (made.path / name).symlink_to(f"usr/{name}")
    shutil.copy(program, made.path / "banger-guest")
    (made.path / "sbin/init").symlink_to("/banger-guest")
    made.write("cmdline", "console=ttyS0\n")
    made.write("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:\nbroken:x\n")
    made.write("etc/group", "root:x:0:\nworkers:x:77:app,other\nalso:x:78:other,app\nbroken\n")
    return made


SHELL = ["/bin/sh", "-c"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "0:0 0"),
        ("", "0:0 0"),
        ("app", "1000:1001 1001 77 78"),
        ("1000", "1000:1001 1001"),
        ("app:workers", "1000:77 77"),
        ("app:5", "1000:5 5"),
        ("4242", "4242:0 0"),
        ("4242:4243", "4242:4243 4243"),
        (":workers", "0:77 77"),
    ],
)
def test_the_user_is_the_images(root: Root, user: str | None, expected: str) -> None:
    config = {"User": user} if user is not None else {}
    root.configure(Entrypoint=[*SHELL, "echo $(id -u):$(id -g) $(id -G)"], **config)
    assert root.run().stdout == f"{expected}\n"


@pytest.mark.parametrize("user", ["nobody-here", "app:nobody-here", "x" * 5000, "-1", "4294967295"])
def test_a_user_that_is_not_there_is_said(root: Root, user: str) -> None:
    root.configure(Entrypoint=["/bin/true"], User=user)
    done = root.run()
    assert done.returncode == 126
    assert done.stdout.startswith("banger-run: ")
    assert done.stdout.count("\n") == 1


def test_environment_folder_and_arguments(root: Root) -> None:
    script = 'pwd; env; echo "$0|$1|$2"'
    env = ["PATH=/bin:/own", "A=höchst 😀 \"'\n\\", "EMPTY=", "NOT-A-PAIR"]
    root.configure(
        Cmd=["two words", "ü"], Entrypoint=[*SHELL, script, "zero"], Env=env, WorkingDir="/a/b",
        User="app", Labels={"a": [1, 2.5e3, None, {"b": True}]},
    )  # fmt: skip
    said = root.run().stdout
    assert said.startswith("/a/b\n")
    assert "\nA=höchst 😀 \"'\n\\\n" in said
    assert "\nEMPTY=\n" in said
    assert "\nHOME=/srv\n" in said
    assert "\nPATH=/bin:/own\n" in said
    assert "NOT-A-PAIR" not in said
    assert said.endswith("zero|two words|ü\n")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "}", "[]", "null", "{}x", '{"Cmd"', '{"Cmd":', '{"Cmd":[', '{"Cmd":["a"',
        '{"Cmd":["a"]', '{"Cmd":["a",]}', '{"Cmd":[1]}', '{"Cmd":"a"}', '{"User":1}',
        '{"Cmd":["\\u0000"]}', '{"Cmd":["\\ud800"]}', '{"Cmd":["\\udc00"]}', '{"Cmd":["\\u12"]}',
        '{"Cmd":["\\x"]}', '{"Cmd":["\\', '{"Cmd":["a\n"]}', '{"X":' + "[" * 100_000,
        '{"X":' + "[" * 40 + "]" * 40 + "}", '{"Cmd":[' + '"a",' * 5000 + '"a"]}',
        '{"Cmd":["' + "a" * 2_000_000 + '"]}', "\0" * 100, '{"Cmd":["a\0b"]}', "\ufffd" * 1000,
    ],
)  # fmt: skip
def test_broken_json_is_one_line(root: Root, text: str) -> None:
    root.write("etc/banger/image.json", text)
    done = root.run()
    assert done.returncode == 1, done.stdout
    assert done.stdout.startswith("banger-run: ")
    assert done.stdout.count("\n") == 1


def test_what_cannot_run_has_the_status_of_a_shell(root: Root) -> None:
    root.configure(Entrypoint=["no-such-program"])
    assert root.run().returncode == 127
    root.configure(Entrypoint=["/etc/passwd"])
    assert root.run().returncode == 126


def test_pid_1_runs_the_program_and_ends_with_its_status(root: Root) -> None:
    script = "echo $PPID $(cat /run/banger/application); (sleep 0.05 &) ; sleep 0.2; exit 42"
    root.configure(Entrypoint=[*SHELL, script], User="app")
    root.write("var/lib/banger/first-boot-pending", "")
    said = root.boot().stdout
    assert "\n1 running " in said
    assert "banger-first-boot: finished\n" in said
    assert "banger-init: the application ended with status: 42\n" in said
    assert "Sanitizer" not in said
    assert not (root.path / "var/lib/banger/first-boot-pending").exists()


def test_pid_1_says_which_signal_ended_the_program(root: Root) -> None:
    root.configure(Entrypoint=[*SHELL, "kill -SEGV $$"])
    assert "the application ended with status: 139\n" in root.boot().stdout


def test_a_request_to_stop_is_handed_on_as_the_image_wants(root: Root) -> None:
    script = "trap 'echo asked to stop; exit 5' USR1; kill -TERM 1; while :; do sleep 0.1; done"
    root.configure(Entrypoint=[*SHELL, script], StopSignal="SIGUSR1")
    said = root.boot().stdout
    assert "asked to stop\n" in said
    assert "the application ended with status: 5\n" in said


def test_only_the_kernel_starts_it(root: Root) -> None:
    done = subprocess.run(
        [root.path / "banger-guest", "init"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert "only the kernel" in done.stderr
