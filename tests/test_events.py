"""What leaves the process as an event: escaped, cut, without secrets, in the form of its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.images import directory, make_layout, tar
from support.program import Program
from test_daemon import config_of

from reconciler.events import Events


def seen(**fields: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    Events([lambda event, safe: found.update(safe)])("x", **fields)
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter2@host/v2/", "https://***@host/v2/"),
        ("https://host/v2/ was refused", "https://host/v2/ was refused"),
        ("Authorization: Bearer eyJhbGciOi.eyJzdWIiOi.x", "Authorization: Bearer ***"),
        ("basic dXNlcjpodW50ZXIy", "basic ***"),
        ("https://cdn/blob?X-Amz-Signature=abc&b=1", "https://cdn/blob?X-Amz-Signature=***&b=1"),
        ("https://cdn/blob?token=abc", "https://cdn/blob?token=***"),
        ("needs basic authentication", "needs basic authentication"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert seen(message=text)["message"] == shown


def test_hostile_text_is_escaped_and_cut() -> None:
    found = seen(message=b"a\n\x1b[31m" + b"x" * 5000)["message"]
    assert "\n" not in found
    assert "\x1b" not in found
    assert len(found) <= 500


@pytest.mark.parametrize(("form", "env"), [("journal", {}), ("auto", {"JOURNAL_STREAM": "8:1"})])
def test_the_journal_gets_priorities(tmp_path: Path, form: str, env: dict[str, str]) -> None:
    program = Program(tmp_path / "host", env)
    make_layout(tmp_path / "small", [tar(directory("etc"))])
    config = config_of(tmp_path / "c.toml", f"oci:{tmp_path}/small", "oci:/no/such")
    words = ("--progress", "none", "--log-level", "info", "--log-format", form)
    lines = program.run(config, *words).err.splitlines()
    priorities = {json.loads(line[3:])["event"]: line[:3] for line in lines}
    assert priorities["config.loaded"] == "<6>"
    assert priorities["image.failed"] == "<3>"
