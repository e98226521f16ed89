"""`[limits]`: from the key in the file to the error that names it, through the whole program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.images import file, make_layout, tar
from support.program import Program

from reconciler.config.load import parse
from reconciler.errors import ConfigError
from reconciler.oci.limits import DEFAULTS, Limits

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "config.md"


def parsed(limits: str) -> Limits:
    return parse(f"[limits]\n{limits}\n".encode(), Path("/")).limits


def test_every_limit_has_a_key_a_default_and_a_line_in_the_documentation() -> None:
    assert parsed("") == DEFAULTS
    section = DOCUMENTATION.read_text().partition("## [limits]")[2]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| `?([^ `]+)`? \|", section, re.MULTILINE))
    documented = "\n".join(f"{key} = {value}" for key, value in rows.items())
    assert parsed(documented) == DEFAULTS
    assert {key.replace("-", "_") for key in rows} == set(Limits._fields)


def test_what_is_set_counts() -> None:
    assert parsed('layer-bytes = "1.5KiB"').layer_bytes == 1536
    assert parsed("layers = 3").layers == 3


@pytest.mark.parametrize(
    "limits",
    ["layer-bytes = 64", 'layer-bytes = "64"', 'layer-bytes = "x"', "entries = 0", "layer = 1"],
)
def test_what_is_no_limit_is_refused(limits: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(limits)
    assert limits.partition(" ")[0] in str(caught.value.problems)


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ("entries = 2", "limits.entries = 2"),
        ("layers = 1", "limits.layers = 1"),
        ('layer-bytes = "512B"', 'limits.layer-bytes = "512B"'),
        ('document-bytes = "64B"', 'limits.document-bytes = "64B"'),
    ],
)
def test_the_error_names_the_key(tmp_path: Path, limit: str, word: str) -> None:
    layers = [tar(file("a"), file("b", b"x" * 600)), tar(file("c"))]
    make_layout(tmp_path / "l", layers, tag="1")
    config = tmp_path / "banger.toml"
    image = f'[[image]]\nname = "web"\nref = "oci:{tmp_path}/l:1"\nsize = "64MiB"\nguest = false\n'
    config.write_text(f"[limits]\n{limit}\n{image}")
    result = Program(tmp_path / "host").run(config, "--json")
    assert result.code == 1
    error = result.images["web"]["error"]
    assert error["code"] == "limit-exceeded"
    assert word in error["message"]
    assert not Program(tmp_path / "host").rootfs("web").exists()
