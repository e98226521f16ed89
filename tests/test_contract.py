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
from support.kernels import bzimage
from support.program import Program, Result
from test_daemon import config_of

from reconciler.config.published import json_schema
from reconciler.model import Action, Reason

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


def busy(host: Host, *words: str | Path, verb: bool = False) -> Result:
    apply(host)
    lock = host.program.state / "lock"
    holder = subprocess.Popen(["flock", lock, "sh", "-c", "echo held; exec sleep 600"], stdout=-1)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        return host.run(*words) if verb else host.run(host.path, *words)
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


def after_a_pass(host: Host, *words: str | Path) -> Result:
    """A verb where there is an image `a`."""
    assert apply(host).code == 0
    return host.run(*words)


def damaged(host: Host, *words: str) -> Result:
    apply(host)
    rootfs = host.program.rootfs("a")
    rootfs.chmod(0o644)
    with rootfs.open("r+b") as stream:
        stream.write(b"x")
    return host.run(*words)


def rolled_back(host: Host) -> Result:
    apply(host)
    make_layout(host.root / "small", [SMALL, tar(file("etc/new", b"new"))])
    assert host.run(host.path).code == 0
    return host.run("rollback", "a")


def locked(host: Host, *words: str) -> Result:
    host.config(host.ref)
    assert host.run("lock", host.path).code == 0
    return host.run(*words, host.path)


def stale(host: Host, *words: str) -> Result:
    locked(host)
    host.config(host.ref, host.ref)
    return host.run(*words, host.path)


def launched(host: Host) -> Result:
    kernel = host.root / "vmlinuz"
    kernel.write_bytes(bzimage())
    head = f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{kernel}" }}\n'
    host.config(host.ref, head=f'{head}[defaults]\nkernel-ref = "lab"')
    assert host.run(host.path).code == 0
    return host.run("launch", "a", "--print")


def holding_the_lock(host: Host, *words: str | Path) -> Result:
    """A verb while another process is the writer."""
    return busy(host, *words, verb=True)


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
    "replaced": (0, lambda host: apply_twice(host, "--replace", "a")),
    "replace, unknown": (1, lambda host: apply_twice(host, "--replace", "b")),
    "image, unknown": (1, lambda host: apply_twice(host, "--image", "b")),
    "status": (0, lambda host: after_a_pass(host, "status")),
    "status, nothing there": (0, lambda host: host.run("status")),
    "status, failed": (0, lambda host: (failing(host), host.run("status"))[1]),
    "validate": (0, lambda host: host.run("validate", host.config(host.ref))),
    "explain": (0, lambda host: after_a_pass(host, "explain", "a", host.path)),
    "explain, unknown": (1, lambda host: after_a_pass(host, "explain", "b", host.path)),
    "explain, failed": (
        1,
        lambda host: host.run("explain", "a", host.config("oci:/no/such")),
    ),
    "explain, invalid": (78, lambda host: invalid(host, "explain", "a")),
    "gc": (0, lambda host: after_a_pass(host, "gc")),
    "gc, dry run": (0, lambda host: after_a_pass(host, "gc", "-n")),
    "gc, nothing there": (0, lambda host: host.run("gc")),
    "gc, invalid": (78, lambda host: invalid(host, "gc")),
    "gc, busy": (75, lambda host: holding_the_lock(host, "gc")),
    "verify": (0, lambda host: after_a_pass(host, "verify")),
    "verify, damaged": (1, lambda host: damaged(host, "verify")),
    "verify, unknown": (1, lambda host: after_a_pass(host, "verify", "b")),
    "lock": (0, locked),
    "lock, again": (0, lambda host: locked(host, "lock")),
    "lock, failed": (1, lambda host: host.run("lock", host.config("oci:/no/such"))),
    "lock, unknown": (1, lambda host: locked(host, "lock", "--upgrade", "b")),
    "lock, invalid": (78, lambda host: invalid(host, "lock")),
    "locked": (0, lambda host: locked(host, "--locked")),
    "locked, missing": (1, lambda host: host.run(host.config(host.ref), "--locked")),
    "locked, stale": (1, lambda host: stale(host, "--locked")),
    "locked, stale, detailed": (1, lambda host: stale(host, "--locked", "--detailed-exitcode")),
    "locked, stale, plan": (1, lambda host: stale(host, "plan", "--locked")),
    "frozen": (0, lambda host: locked(host, "--frozen")),
    "frozen, stale": (1, lambda host: stale(host, "--frozen")),
    "rollback": (0, rolled_back),
    "rollback, nothing earlier": (1, lambda host: after_a_pass(host, "rollback", "a")),
    "rollback, unknown": (1, lambda host: after_a_pass(host, "rollback", "b")),
    "rollback, busy": (75, lambda host: holding_the_lock(host, "rollback", "a")),
    "rm": (0, lambda host: after_a_pass(host, "rm", "a")),
    "rm, unknown": (1, lambda host: after_a_pass(host, "rm", "b")),
    "rm, busy": (75, lambda host: holding_the_lock(host, "rm", "a")),
    "suspend": (0, lambda host: after_a_pass(host, "suspend", "a", "--reason", "x")),
    "suspend, everything": (0, lambda host: after_a_pass(host, "suspend", "--reason", "x")),
    "suspend, no reason": (64, lambda host: after_a_pass(host, "suspend", "a")),
    "suspend, busy": (75, lambda host: holding_the_lock(host, "suspend", "a", "--reason", "x")),
    "resume": (0, lambda host: after_a_pass(host, "resume", "a")),
    "resume, busy": (75, lambda host: holding_the_lock(host, "resume")),
    "launch": (0, launched),
    "launch, unknown": (1, lambda host: host.run("launch", "a", "--print")),
    "launch, no kernel": (1, lambda host: after_a_pass(host, "launch", "a", "--print")),
    "version": (0, lambda host: host.run("version")),
    "interrupted": (130, lambda host: interrupted(host, signal.SIGINT)),
    "terminated": (143, lambda host: interrupted(host, signal.SIGTERM)),
}


@pytest.mark.parametrize("case", CASES)
def test_exit_code_and_document(host: Host, case: str) -> None:
    code, run = CASES[case]
    result = run(host)
    assert result.code == code, result.out + result.err
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


class TestDocuments:
    """docs/commands.md and the published schema name what the program can say."""

    TEXT = (ROOT / "docs/commands.md").read_text()
    DEFINITIONS = OUTPUT.schema["definitions"]

    def test_actions_and_reasons(self) -> None:
        image = self.DEFINITIONS["image"]["properties"]
        assert image["action"]["enum"] == [action.value for action in Action]
        assert sorted(image["reason"]["enum"]) == sorted(reason.value for reason in Reason)
        for word in (*Action, *Reason):
            assert f"`{word.value}`" in self.TEXT, word

    def test_modes(self) -> None:
        modes = set()
        for definition in self.DEFINITIONS.values():
            said = definition.get("properties", {}).get("mode", {})
            modes |= {*said.get("enum", ()), *filter(None, [said.get("const")])}
        assert len(modes) == 15
        for mode in modes:
            assert f"`{mode}`" in self.TEXT, mode
