"""Exit codes and JSON: every one of the contract's codes, each with a document that is valid."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import tomli
from support.images import directory, file, make_layout, tar
from support.program import Program, Result
from test_daemon import config_of

from reconciler.config.published import json_schema

ROOT = Path(__file__).parent.parent
OUTPUT = jsonschema.Draft7Validator(json.loads((ROOT / "docs/output.schema.json").read_text()))
SMALL = tar(directory("etc"), file("etc/hostname", b"guest\n"))


class Host:
    """A program, an image that can be had and a configuration that can be written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = Program(root / "host")
        make_layout(root / "small", [SMALL])
        self.ref = f"oci:{root}/small"
        self.path = root / "banger.toml"

    def config(self, *refs: str, head: str = "") -> Path:
        return config_of(self.path, *refs, head=head)

    def run(self, *words: str | Path) -> Result:
        return self.program.run(*words, "--json")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def apply(host: Host) -> Result:
    return host.run(host.config(host.ref))


def apply_twice(host: Host, *words: str) -> Result:
    apply(host)
    return host.run(host.path, *words)


def failing(host: Host, *words: str) -> Result:
    return host.run(host.config("oci:/no/such"), *words)


def half_failing(host: Host, *words: str) -> Result:
    return host.run(host.config("oci:/no/such", host.ref), *words)


def invalid(host: Host, *words: str) -> Result:
    host.path.write_text("[[image]]\nrf = 1\n")
    return host.run(*words, host.path)


def blocked(host: Host) -> Result:
    apply(host)
    host.config(head='[prune]\nimages = true\ngrace = "0s"')
    host.run(host.path)
    return host.run(host.path)


def busy(host: Host, *words: str) -> Result:
    apply(host)
    lock = host.program.state / "lock"
    holder = subprocess.Popen(["flock", lock, "sh", "-c", "echo held; exec sleep 600"], stdout=-1)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        return host.run(host.path, *words)
    finally:
        holder.terminate()
        holder.wait()


def interrupted(host: Host, number: signal.Signals) -> Result:
    make_layout(host.root / "slow", [tar(*(file(f"d{n % 99}/{n}", b"x") for n in range(15_000)))])
    config = config_of(host.path, f"oci:{host.root}/slow", size="128MiB")
    child = subprocess.Popen(
        host.program.argv(config, "--json", "--progress", "plain"),
        env=host.program.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr
    next(line for line in child.stderr if "flatten:" in line)
    child.send_signal(number)
    out, _ = child.communicate()
    return Result(child.returncode, out, "")


Case = Callable[[Host], Result]

CASES: dict[str, tuple[int, Case]] = {
    "created": (0, apply),
    "unchanged": (0, apply_twice),
    "unchanged, detailed": (0, lambda host: apply_twice(host, "--detailed-exitcode")),
    "created, detailed": (
        2,
        lambda host: host.run(host.config(host.ref), "--detailed-exitcode"),
    ),
    "failed": (1, failing),
    "failed, detailed": (4, lambda host: failing(host, "--detailed-exitcode")),
    "failed and created": (1, half_failing),
    "failed and created, detailed": (6, lambda host: half_failing(host, "--detailed-exitcode")),
    "prune blocked": (1, blocked),
    "plan": (0, lambda host: host.run("plan", host.config(host.ref))),
    "plan, detailed": (
        2,
        lambda host: host.run("plan", host.config(host.ref), "--detailed-exitcode"),
    ),
    "plan, failed": (
        1,
        lambda host: host.run("plan", host.config("oci:/no/such"), "--detailed-exitcode"),
    ),
    "usage: option": (64, lambda host: host.run(host.config(host.ref), "--no-such-option")),
    "usage: value": (64, lambda host: host.run(host.config(host.ref), "--jobs", "0")),
    "usage: nothing": (64, lambda host: host.run("explain")),
    "busy": (75, busy),
    "busy, waited": (75, lambda host: busy(host, "--lock-timeout", "300ms")),
    "invalid": (78, invalid),
    "invalid, validate": (78, lambda host: invalid(host, "validate")),
    "invalid, plan": (78, lambda host: invalid(host, "plan")),
    "invalid, watch": (78, lambda host: invalid(host, "--watch")),
    "missing": (78, lambda host: host.run(host.root / "none.toml")),
    "interrupted": (130, lambda host: interrupted(host, signal.SIGINT)),
    "terminated": (143, lambda host: interrupted(host, signal.SIGTERM)),
}


@pytest.mark.parametrize("case", CASES)
def test_exit_code_and_document(host: Host, case: str) -> None:
    code, run = CASES[case]
    result = run(host)
    assert result.code == code, result.out + result.err
    OUTPUT.validate(result.document)


VERBS: list[tuple[str, ...]] = [
    ("status",),
    ("gc", "--dry-run"),
    ("gc",),
    ("verify",),
    ("suspend", "a", "--reason", "x"),
    ("resume", "a"),
    ("rm", "a"),
]


def test_every_verb_prints_a_valid_document(host: Host) -> None:
    apply(host)
    for words in (*VERBS[:4], ("validate", host.path), ("explain", "a", host.path), *VERBS[4:]):
        result = host.run(*words)
        assert result.code == 0, result.err
        OUTPUT.validate(result.document)


class TestConfigSchema:
    def test_it_is_a_schema_and_the_published_one(self) -> None:
        jsonschema.Draft7Validator.check_schema(json_schema())
        published = json.loads((ROOT / "docs/banger.schema.json").read_text())
        assert published == json_schema(), "run `banger-reconcile schema >docs/banger.schema.json`"

    @pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.toml")), ids=str)
    def test_examples_name_it_and_pass(self, example: Path) -> None:
        text = example.read_text()
        where = text.splitlines()[0].removeprefix("#:schema ")
        assert (example.parent / where).resolve() == ROOT / "docs/banger.schema.json"
        jsonschema.Draft7Validator(json_schema()).validate(tomli.loads(text))

    @pytest.mark.parametrize(
        "wrong",
        [
            "unknown = 1",
            "[reconcile]\ninterval = 10",
            '[[image]]\nname = "web"',
            '[[image]]\nref = "a"\npull = "sometimes"',
            '[prune]\nmax = "many"',
        ],
    )
    def test_what_the_program_refuses_the_schema_refuses(self, wrong: str) -> None:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(json_schema()).validate(tomli.loads(wrong))
