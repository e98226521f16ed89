"""Credential helpers as real programs: the protocol, and what becomes of those that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler import logins
from reconciler.errors import Code, HostError
from reconciler.logins import ask_helper
from reconciler.oci.auth import Credential, parse_helper_answer

CANARY = "c4nary-s3cret"
Write = Callable[[str], str]


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Make `docker-credential-test` of a shell script, on PATH; returns its name."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(script: str) -> str:
        path = tmp_path / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path.name

    return write


def failure(program: str) -> HostError:
    with pytest.raises(HostError) as caught:
        ask_helper(program, "lab:5000")
    assert CANARY not in f"{caught.value.brief}{caught.value.resolution}"
    assert program in caught.value.brief
    return caught.value


def test_a_helper_reads_the_server_and_may_run_other_programs(
    tmp_path: Path, helper: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"Username": "ann", "Secret": CANARY})
    monkeypatch.setenv("KEYRING", "mine")
    program = helper(
        f"/bin/cat > {tmp_path}/stdin; echo \"$@\" $KEYRING > {tmp_path}/seen; echo '{answer}'"
    )
    found = parse_helper_answer(ask_helper(program, "lab:5000"))
    assert found == Credential("ann", CANARY)
    assert (tmp_path / "stdin").read_text() == "lab:5000"
    assert (tmp_path / "seen").read_text() == "get mine\n"


def test_a_helper_that_keeps_nothing(helper: Write) -> None:
    program = helper("echo credentials not found in native keychain; exit 1")
    assert ask_helper(program, "lab:5000") == ""


def test_a_helper_that_gives_up_is_not_quoted(helper: Write) -> None:
    error = failure(helper(f"echo {CANARY}; echo {CANARY} >&2; exit 3"))
    assert (error.code, error.retryable) == (Code.UNAUTHORIZED, False)
    assert "docker-credential-test get" in error.resolution


def test_a_helper_that_is_killed_is_not_quoted(helper: Write) -> None:
    error = failure(helper(f"echo {CANARY} >&2; kill -9 $$"))
    assert error.code is Code.TOOL_FAILED


def test_a_helper_that_waits_for_ever_is_ended(
    helper: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "HELPER_SECONDS", 0.3)
    begin = time.monotonic()
    assert failure(helper("sleep 600")).code is Code.TOOL_FAILED
    assert time.monotonic() - begin < 300


def test_a_helper_that_is_not_there(helper: Write) -> None:
    error = failure("docker-credential-missing")
    assert error.code is Code.TOOL_MISSING
    assert "auth-file" in error.resolution


def test_waiting_for_a_helper_can_be_given_up(helper: Write) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        ask_helper(helper("sleep 600"), "lab:5000", stop)
