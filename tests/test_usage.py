"""The command line as people use it: help, options anywhere, the environment, shells."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.program import Program

ROOT = Path(__file__).parent.parent
VERBS = [
    *("completion", "explain", "gc", "launch", "lock", "plan", "resume", "rm", "rollback"),
    *("schema", "status", "suspend", "validate", "verify", "version"),
]
OPTIONS = [
    *("--json", "--progress", "--detailed-exitcode", "--image", "--replace", "--prune"),
    *("--no-prune", "--allow-empty", "--locked", "--frozen", "--offline", "--jobs", "--timeout"),
    *("--lock-timeout", "--fail-fast", "--state-dir", "--cache-dir", "--interval", "--listen"),
    *("--metrics-file", "--log-level", "--log-format", "-q", "-v", "--color", "-h", "--version"),
    *("--watch", "-n", "--dry-run"),
]
PATIENCE = 120.0


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_layout(tmp_path / "web", [tar(directory("etc"), file("etc/hostname", b"guest\n"))])
    path = tmp_path / "banger.toml"
    path.write_text('[[image]]\nname = "web"\nref = "oci:web"\nsize = "16MiB"\n')
    return path


class TestHelp:
    def test_the_first_page_names_every_verb_and_every_option_of_a_pass(
        self, program: Program
    ) -> None:
        shown = program.run("--help").out
        for word in (*VERBS, *OPTIONS):
            assert re.search(rf"(?m)^  (.*[ ,])?{re.escape(word)}[ ,\n]", shown), word
        assert "apply" not in shown
        assert shown == program.run("-h").out
        assert max(map(len, shown.splitlines())) <= 80

    @pytest.mark.parametrize("verb", VERBS)
    def test_each_verb_says_what_it_does(self, program: Program, verb: str) -> None:
        shown = program.run(verb, "--help")
        assert shown.code == 0
        assert shown.out.startswith(f"Usage: banger-reconcile {verb} ")
        assert "..." not in shown.out.replace("...]", "")
        options = [line for line in shown.out.splitlines() if line.startswith("  -")]
        assert options
        for line in options:
            assert re.search(r"\S  +\S", line.strip()), f"no words for {line}"

    def test_nothing_at_all_is_wrong_usage(self, program: Program) -> None:
        result = program.run()
        assert result.code == 64
        assert "CONFIG" in result.err

    @pytest.mark.parametrize(
        ("words", "meant"),
        [
            (("--interval", "0s", "--watch", "x.toml"), "longer than 0s"),
            (("--timeout", "0s", "x.toml"), "longer than 0s"),
            (("stauts",), "'status'"),
            (("--watc", "x.toml"), "--watch"),
            (("plan", "--detailed", "x.toml"), "--detailed-exitcode"),
            (("--log-level", "inf", "x.toml"), "info"),
        ],
    )
    def test_abbreviations_and_slips_are_refused_with_what_was_meant(
        self, program: Program, words: tuple[str, ...], meant: str
    ) -> None:
        result = program.run(*words)
        assert result.code == 64
        assert meant in result.err

    def test_a_file_that_is_called_nearly_like_a_verb_is_a_file(
        self, program: Program, config: Path
    ) -> None:
        config.rename(config.with_name("plam"))
        result = subprocess.run(
            program.argv("plam", "-n", "--json"),
            env={**program.environment, "PYTHONPATH": str(ROOT)},
            cwd=config.parent,
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["mode"] == "plan"


class TestPlaces:
    @pytest.mark.parametrize(
        "words",
        [
            ("plan", "--json", "CONFIG", "--detailed-exitcode"),
            ("--json", "plan", "--detailed-exitcode", "CONFIG"),
            ("--json", "--detailed-exitcode", "--color", "never", "plan", "CONFIG"),
            ("CONFIG", "--dry-run", "--json", "--detailed-exitcode"),
            ("-n", "--detailed-exitcode", "CONFIG", "--json"),
            ("--detailed-exitcode", "--json", "-qvn", "--", "CONFIG"),
        ],
    )
    def test_options_stand_anywhere(
        self, program: Program, config: Path, words: tuple[str, ...]
    ) -> None:
        result = program.run(*(config if word == "CONFIG" else word for word in words))
        assert result.code == 2, result.err
        assert result.document["mode"] == "plan"
        assert not program.state.exists()

    def test_a_value_that_is_called_like_a_verb_is_a_value(
        self, program: Program, config: Path
    ) -> None:
        state = program.root / "plan"
        words = ("--state-dir", "plan", "plan", config, "--json", "--image", "web")
        result = subprocess.run(
            program.argv(*words),
            env={**program.environment, "PYTHONPATH": str(ROOT)},
            cwd=program.root,
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert str(state / "images") in json.loads(result.stdout)["images"][0]["path"]

    def test_a_verbs_own_option_may_come_before_it(self, program: Program, config: Path) -> None:
        program.run(config)
        assert program.run("--reason", "a test", "suspend", "web").code == 0
        assert program.run("status", "--json").images["web"]["suspended"] == "a test"


class TestPrecedence:
    """Flag, environment, banger.toml, default."""

    def stopped(self, program: Program, config: Path, *words: str) -> bool:
        """Whether a build was given too little time."""
        result = program.run(config, "--json", *words)
        error = result.images["web"]["error"]
        assert error is None or error["code"] == "timeout"
        shutil.rmtree(program.state)
        return error is not None

    def test_timeout(self, program: Program, config: Path) -> None:
        image = config.read_text()
        assert not self.stopped(program, config)
        config.write_text(f'[reconcile]\ntimeout = "1ms"\n{image}')
        assert self.stopped(program, config)
        program.env = {"BANGER_TIMEOUT": "10m"}
        assert not self.stopped(program, config)
        assert self.stopped(program, config, "--timeout", "1ms")
        program.env = {"BANGER_TIMEOUT": "1ms"}
        assert not self.stopped(program, config, "--timeout", "10m")

    def test_directories(self, program: Program, config: Path) -> None:
        root = program.root
        chain = {
            "HOME": ("home", ".local/state/banger", ".cache/banger"),
            "XDG": ("xdg", "banger", "banger"),
            "SYSTEMD": ("systemd", "", ""),
            "BANGER": ("banger", "", ""),
        }
        names = {
            "HOME": ("HOME", "HOME"),
            "XDG": ("XDG_STATE_HOME", "XDG_CACHE_HOME"),
            "SYSTEMD": ("STATE_DIRECTORY", "CACHE_DIRECTORY"),
            "BANGER": ("BANGER_STATE_DIR", "BANGER_CACHE_DIR"),
        }
        env = {"BANGER_STATE_DIR": "", "BANGER_CACHE_DIR": ""}
        for step, (folder, state, cache) in chain.items():
            state_base, cache_base = root / folder / "s", root / folder / "c"
            if step == "HOME":
                state_base = cache_base = root / folder
            env |= dict(zip(names[step], (str(state_base), str(cache_base)), strict=True))
            program.env = env
            assert program.run(config).code == 0
            assert (state_base / state / "records.db").exists(), step
            assert (cache_base / cache / "oci").is_dir(), step
        flags = ("--state-dir", str(root / "fs"), "--cache-dir", str(root / "fc"))
        assert program.run(config, *flags).code == 0
        assert (root / "fs/records.db").exists()
        assert (root / "fc/oci").is_dir()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BANGER_JOBS", "many"),
            ("BANGER_INTERVAL", "10"),
            ("BANGER_LOCK_TIMEOUT", "x"),
            ("BANGER_COLOR", "blue"),
            ("BANGER_LOG_FORMAT", "x"),
        ],
    )
    def test_a_wrong_value_names_the_variable(
        self, program: Program, config: Path, name: str, value: str
    ) -> None:
        program.env = {name: value}
        result = program.run(config)
        assert result.code == 64
        assert name in result.err

    def test_switches_of_the_environment(self, program: Program, config: Path) -> None:
        program.env = {"BANGER_LOCKED": "1"}
        assert program.run(config).code == 1
        program.env = {"BANGER_LOCKED": "0", "BANGER_JOBS": "", "BANGER_OFFLINE": "yes"}
        assert program.run(config).code == 0


def on_terminal(argv: list[str], environment: dict[str, str]) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(argv, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        text += piece
    assert child.wait() == 0
    os.close(ours)
    return text.decode()


class TestOutput:
    def test_colours(self, program: Program, config: Path) -> None:
        def coloured(*words: str, terminal: bool = True, **env: str) -> bool:
            environment = {**program.environment, "TERM": "xterm", **env}
            argv = program.argv("plan", config, *words)
            if terminal:
                return "\x1b[3" in on_terminal(argv, environment)
            done = subprocess.run(argv, env=environment, capture_output=True, check=True)
            return b"\x1b[3" in done.stdout

        assert coloured()
        assert not coloured("--color", "never")
        assert not coloured(NO_COLOR="1")
        assert not coloured(TERM="dumb")
        assert not coloured(terminal=False)
        assert coloured("--color", "always", terminal=False)
        assert coloured("--color", "always", NO_COLOR="1")

    def test_json_is_alone_on_stdout(self, program: Program, config: Path) -> None:
        result = program.run(config, "--json", "-v", "--progress", "plain", "--log-level", "debug")
        assert result.document["changed"]
        assert "stage.started" in result.err

    def test_quiet_says_nothing_but_errors(self, program: Program, config: Path) -> None:
        for words in (("plan", config), (config,), ("status",), ("gc",), ("verify",)):
            result = program.run(*words, "-q")
            assert (result.code, result.out, result.err) == (0, "", ""), words
        config.write_text('[[image]]\nname = "bad"\nref = "oci:/no/such"\n')
        failed = program.run(config, "-q")
        assert (failed.code, failed.out) == (1, "")
        assert "/no/such" in failed.err

    def test_progress_and_log_are_lines_of_one_vocabulary(
        self, program: Program, config: Path
    ) -> None:
        documented = set(
            re.findall(r"`([a-z]+\.[a-z]+|listening)`", (ROOT / "docs/architecture.md").read_text())
        )
        ways = (("--progress", "json"), ("--log-level", "debug", "--log-format", "json"))
        for number, words in enumerate(ways):
            program.run("rm", "web")
            shutil.rmtree(program.state, ignore_errors=True)
            quiet = ("--progress", "none") if number else ()
            result = program.run(config, *words, *quiet)
            events = [json.loads(line) for line in result.err.splitlines()]
            assert {event["event"] for event in events} <= documented
            names = [event["event"] for event in events]
            assert names[0] == "config.loaded"
            assert names[-1] == "reconcile.finished"
            for event in events:
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", event["timestamp"])
                assert event["level"] in ("debug", "info", "warning", "error")
                if event["event"] != "config.loaded":
                    assert event["reconcile_id"]
                if event["event"].startswith("stage."):
                    assert (event["image"], event["generation"]) == ("web", 1)
                if event["event"] == "stage.finished":
                    assert event["duration_seconds"] >= 0

    def test_forms_of_the_log(self, program: Program, config: Path) -> None:
        def log(form: str, **env: str) -> str:
            program.env = env
            words = ("--log-level", "info", "--log-format", form, "--progress", "none")
            return program.run("plan", config, *words).err.splitlines()[0]

        assert log("journal").startswith("<6>{")
        assert log("auto", JOURNAL_STREAM="8:1").startswith("<6>{")
        assert json.loads(log("json"))["event"] == "config.loaded"
        assert not log("console").startswith(("{", "<"))
        assert log("auto").startswith("{")

    @pytest.mark.parametrize("verb", ["version", "schema"])
    def test_even_these_have_json(self, program: Program, verb: str) -> None:
        assert program.run(verb, "--json").document

    def test_version(self, program: Program) -> None:
        assert program.run("--version").out == program.run("version").out


class Shell:
    """An interactive shell on a terminal, with the program on its PATH."""

    def __init__(self, argv: list[str], program: Program) -> None:
        folder = program.root / "bin"
        folder.mkdir()
        wrapper = folder / "banger-reconcile"
        wrapper.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m reconciler "$@"\n'
        )
        wrapper.chmod(0o755)
        self.seen = ""
        path = f"{folder}:{os.environ['PATH']}"
        environment = {**program.environment, "PATH": path, "TERM": "xterm", "PS1": "> "}
        self.ours, theirs = pty.openpty()
        self.child = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,  # where no file begins like a verb
        )
        os.close(theirs)

    def say(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str) -> str:
        """Read until this has been written since the last call."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.ours], [], [], 1.0)[0]:
                text = os.read(self.ours, 4096).decode(errors="replace")
                self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        self.seen = self.seen[found.end() :]
        return found[0]

    def complete(self, text: str, rest: str) -> None:
        """Type this and a tab; the shell adds the rest."""
        self.say(f"{text}\t")
        self.until(re.escape(rest))

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.ours)


SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(banger-reconcile completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u; eval "$(banger-reconcile completion zsh)"',
    ),
    "fish": (
        ["fish", "--no-config", "-i"],
        "set -g fish_autosuggestion_enabled 0; banger-reconcile completion fish | source",
    ),
}


@pytest.mark.parametrize("name", SHELLS)
def test_a_real_shell_completes_verbs_options_and_names(
    name: str, program: Program, config: Path
) -> None:
    argv, setup = SHELLS[name]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{name} is not installed (contrib/install-packages test installs it)")
    program.run(config)
    shell = Shell(argv, program)
    try:
        shell.say(f"{setup}; echo rea''dy\n")
        shell.until("ready")
        shell.complete("banger-reconcile vers", "ion")
        shell.complete("--js", "on")
        shell.say("\n")
        shell.until(r'"mode": "version"')
        shell.complete("banger-reconcile veri", "fy")
        shell.complete("w", "eb")
        shell.complete("--js", "on")
        shell.say("\n")
        shell.until(r'"whole": true')
        shell.complete("banger-reconcile --cache-dir nowhere --state-d", "ir")
        shell.complete("nowhere stat", "us")
        shell.say("\n")
        shell.until(r"no images yet")
        shell.complete("banger-reconcile --dry", "-run")
        shell.complete(f"{config.parent}/bange", "r.toml")
        shell.say("\n")
        shell.until(r"nothing to change")
    finally:
        shell.close()
