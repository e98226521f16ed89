"""Every key of banger.toml is documented, and changes something that its user notices.

Where another file proves that, PROVEN names the test; the rest is proven here, on the program.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.images import directory, file, make_layout, push, tar
from support.kernels import bzimage
from support.program import Program, Result
from support.registry import RunningRegistry, registry, running_registry

from reconciler.config.published import json_schema

__all__ = ["registry"]  # a fixture

ROOT = Path(__file__).parent.parent
SMALL = tar(directory("etc"), file("etc/hostname", b"guest\n"))

PROVEN = {
    "version": "test_config_problems.py",
    "reconcile.interval": "test_agenda.py",
    "reconcile.jitter": "test_agenda.py",
    "reconcile.jobs": "test_keys.py",
    "reconcile.timeout": "test_usage.py",
    "reconcile.settle": "test_watch.py",
    "reconcile.retry": "test_daemon.py",
    "retry.base": "test_agenda.py",
    "retry.factor": "test_agenda.py",
    "retry.max": "test_agenda.py",
    "image.ref": "test_end_to_end.py",
    "image.name": "test_end_to_end.py",
    "image.size": "test_end_to_end.py",
    "image.kernel-ref": "test_end_to_end.py",
    "image.pull": "test_keys.py",
    "image.platform": "test_keys.py",
    "image.retain": "test_keys.py",
    "image.guest": "test_keys.py",
    "image.inject-modules": "test_inject_modules.py",
    "image.run-entrypoint": "boot/test_boot.py",
    "image.builder": "test_end_to_end.py",
    "image.protect": "test_verbs.py",
    "image.suspend": "test_keys.py",
    "prune.images": "test_verbs.py",
    "prune.grace": "test_prune.py",
    "prune.max": "test_verbs.py",
    "prune.allow-empty": "test_keys.py",
    "gc.staging-min-age": "test_keys.py",
    "gc.blob-min-age": "test_keys.py",
    "guest.vsock-port": "test_keys.py",
    "kernel.name": "test_end_to_end.py",
    "kernel.kernel": "test_end_to_end.py",
    "kernel.initrd": "test_kernel_store.py",
    "kernel.modules": "test_kernel_store.py",
    "kernel.cmdline": "test_keys.py",
    "kernel.apt": "test_kernel_origins.py",
    "kernel.host": "test_kernel_origins.py",
    "kernel.image": "test_kernel_unpack.py",
    "kernel.platform": "test_kernel_unpack.py",
    "kernel.optional": "test_kernel_unpack.py",
    "source.image": "test_kernel_unpack.py",
    "source.file": "test_kernel_unpack.py",
    "source.path": "test_end_to_end.py",
    "source.url": "test_end_to_end.py",
    "source.sha256": "test_kernel_store.py",
    "registry.host": "test_keys.py",
    "registry.mirrors": "hostile_registry/test_registry_real.py",
    "registry.auth-file": "test_logins.py",
    "registry.username-file": "test_keys.py",
    "registry.password-file": "test_keys.py",
    "registry.ca-file": "hostile_registry/test_registry_real.py",
    "registry.plain-http": "test_keys.py",
}


def keys() -> Iterator[tuple[str, str]]:
    """(table, key) of everything that the schema knows; [limits] has its own table of tests."""
    schema = json_schema()
    places = {"Document": "", "Retry": "retry", "Source": "source"}
    skipped = ("Limits", "Defaults", "ModulesSource")
    tables = [("", schema), *((n.lower(), d) for n, d in schema["definitions"].items())]
    for name, table in tables:
        if name.capitalize() in skipped or name in map(str.lower, skipped):
            continue
        for key, field in table["properties"].items():
            nested = "$ref" in str(field) and not name
            if not nested:
                yield places.get(name.capitalize(), name), key


def test_every_key_is_proven_and_documented() -> None:
    text = (ROOT / "docs/config.md").read_text()
    for table, key in keys():
        assert f"{table}.{key}".lstrip(".") in PROVEN, "name the test that proves it"
        assert re.search(rf"(?m)^\| .*`{key}`|`{key}` is a table|\b{key} = ", text), key
    for name, where in PROVEN.items():
        assert name.rpartition(".")[2] in (ROOT / "tests" / where).read_text().replace("_", "-")


class Lab:
    """A host and a configuration with a layout beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = Program(root / "host")
        self.path = root / "banger.toml"
        make_layout(root / "web", [SMALL])

    def run(self, text: str, *words: str) -> Result:
        self.path.write_text(text)
        return self.program.run(self.path, "--json", *words)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def image(**keys: Any) -> str:
    """An [[image]] entry called web."""
    said = {"name": "web", "ref": "oci:web", "size": "16MiB", "guest": False, **keys}
    rows = [f"{k.replace('_', '-')} = {_toml(v)}" for k, v in said.items() if v is not None]
    return "\n".join(("[[image]]", *rows, ""))


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'


class TestImage:
    def test_a_default_is_taken_and_an_entry_wins(self, lab: Lab) -> None:
        head = '[defaults]\nsize = "20MiB"\nsuspend = true\n'
        result = lab.run(head + image(size=None) + image(name="b", size=None, suspend=False))
        assert result.images["web"]["action"] == "suspend"
        assert result.images["b"]["action"] == "create"
        assert lab.program.rootfs("b").stat().st_size == 20 << 20

    def test_suspend(self, lab: Lab) -> None:
        lab.run(image())
        before = lab.program.rootfs("web").resolve()
        held = lab.run(image(suspend=True, size="20MiB", ref="oci:/gone"))
        assert (held.code, held.images["web"]["reason"]) == (0, "Suspended")
        assert held.document["summary"]["suspended"] == 1
        assert lab.program.rootfs("web").resolve() == before

    def test_guest(self, lab: Lab) -> None:
        lab.run(image())
        plain = lab.program.rootfs("web").read_bytes()
        result = lab.run(image(guest=True))
        assert result.images["web"]["reason"] == "GuestChanged"
        assert b"banger" in lab.program.rootfs("web").read_bytes()
        assert b"banger" not in plain

    def test_vsock_port(self, lab: Lab) -> None:
        lab.run(image(guest=True))
        result = lab.run("[guest]\nvsock-port = 4711\n" + image(guest=True))
        assert result.images["web"]["reason"] == "GuestChanged"
        assert b"4711" in lab.program.rootfs("web").read_bytes()

    def test_retain(self, lab: Lab) -> None:
        def artifacts() -> int:
            return len([p for p in (lab.program.state / "images").iterdir() if len(p.name) == 32])

        for size in ("16MiB", "20MiB", "24MiB", "28MiB"):
            lab.run(image(retain=2, size=size))
        assert artifacts() == 3
        lab.run(image(retain=0, size="28MiB"))
        assert artifacts() == 1
        assert lab.program.run("rollback", "web").code == 1

    def test_platform(self, lab: Lab) -> None:
        wrong = lab.run(image(platform="linux/arm64"))
        assert wrong.code == 1
        assert "arm64" in wrong.images["web"]["error"]["message"]

    def test_pull(self, lab: Lab, registry: RunningRegistry) -> None:
        push(lab.root / "web", registry, "keys/web", "1")
        ref = f"{registry.host}/keys/web:1"
        head = f'[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
        never = lab.run(head + image(ref=ref, pull="never"))
        assert never.images["web"]["error"]["code"] == "offline"
        assert 'pull = "never"' in never.images["web"]["error"]["message"]
        first = lab.run(head + image(ref=ref)).images["web"]["resolved_digest"]
        moved = make_layout(lab.root / "web", [SMALL, tar(file("new", b"new"))])
        push(lab.root / "web", registry, "keys/web", "1")
        digests = [
            lab.run(head + image(ref=ref, pull=pull)).images["web"]["resolved_digest"]
            for pull in ("never", "always")
        ]
        assert digests == [first, moved]


class TestOthers:
    def test_jobs(self, lab: Lab) -> None:
        for name in ("a", "b"):
            make_layout(lab.root / name, [tar(file(name, name.encode()))])
        images = image(name="a", ref="oci:a") + image(name="b", ref="oci:b")
        lab.path.write_text(f"[reconcile]\njobs = 1\n{images}")
        lines = lab.program.run(lab.path, "--progress", "plain").err.splitlines()
        order = [line[0] for line in lines if line[:3] in ("a: ", "b: ")]
        assert order == sorted(order), "one began before the other was done"
        assert set(order) == {"a", "b"}

    def test_ages_of_what_nothing_refers_to(self, lab: Lab) -> None:
        lab.run(image())
        blobs = lab.program.cache / "oci/blobs/sha256"
        ours = set(blobs.iterdir())
        stray, staging = blobs / ("0" * 64), lab.program.state / "images" / ("0" * 32 + ".staging")

        def left(head: str) -> tuple[bool, bool]:
            stray.write_bytes(b"x")
            staging.mkdir(exist_ok=True)
            for path in (stray, staging):
                os.utime(path, (time.time() - 7200,) * 2)
            assert lab.run(head + image()).code == 0
            assert ours <= set(blobs.iterdir())
            return stray.exists(), staging.exists()

        assert left("") == (True, False)
        assert left('[gc]\nstaging-min-age = "3h"\n') == (True, True)
        assert left('[gc]\nblob-min-age = "1h"\nstaging-min-age = "3h"\n') == (False, True)

    def test_allow_empty_of_the_file(self, lab: Lab) -> None:
        lab.run(image())
        empty = '[prune]\nimages = true\ngrace = "0s"\nmax = 1\nallow-empty = true\n'
        lab.run(empty)
        assert lab.run(empty).document["summary"]["pruned"] == 1

    def test_cmdline_reaches_who_starts_the_guest(self, lab: Lab) -> None:
        (lab.root / "vmlinuz").write_bytes(bzimage())
        kernel = (
            '[[kernel]]\nname = "lab"\nkernel = { path = "vmlinuz" }\ncmdline = "quiet lab=1"\n'
        )
        assert lab.run(kernel + image(kernel_ref="lab")).code == 0
        shown = lab.program.run("launch", "web", "--print", "--json").document
        assert any("quiet lab=1" in word for word in shown["qemu"])
        other = lab.run(kernel.replace("lab=1", "lab=2") + image(kernel_ref="lab"))
        assert other.images["web"]["reason"] == "KernelChanged"

    def test_username_file_and_password_file(self, lab: Lab) -> None:
        with running_registry(lab.root / "registry", username="ann", password="s3cret") as own:
            push(lab.root / "web", own, "web", "1")
            ref = image(ref=f"{own.host}/web:1")
            head = f'[[registry]]\nhost = "{own.host}"\nplain-http = true\n'
            refused = lab.run(head + ref)
            assert refused.images["web"]["error"]["code"] == "unauthorized"
            (lab.root / "user").write_text("ann\n")
            (lab.root / "secret").write_text("s3cret\n")
            files = 'username-file = "user"\npassword-file = "secret"\n'
            assert lab.run(head + files + ref).code == 0

    def test_plain_http_is_asked_for(self, lab: Lab, registry: RunningRegistry) -> None:
        push(lab.root / "web", registry, "keys/plain", "1")
        result = lab.run(image(ref=f"{registry.host}/keys/plain:1"), "--timeout", "30s")
        assert result.code == 1
        assert "plain-http" in str(result.images["web"]["error"])


class TestEdits:
    """An edit takes effect, and costs no more than it must."""

    @pytest.fixture
    def built(self, lab: Lab, registry: RunningRegistry) -> tuple[Lab, str]:
        (lab.root / "vmlinuz").write_bytes(bzimage())
        repository = f"edits/{lab.root.name.replace('_', '-').lower()}"
        push(lab.root / "web", registry, repository, "1")
        push(lab.root / "web", registry, repository, "2")
        head = f'[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
        kernel = '[[kernel]]\nname = "lab"\nkernel = { path = "vmlinuz" }\n'
        text = head + kernel + image(ref=f"{registry.host}/{repository}:1", kernel_ref="lab")
        assert lab.run(text).code == 0
        return lab, text

    def runs(self, result: Result, name: str = "web") -> list[str]:
        assert result.code == 0, result.err
        return [s["name"] for s in result.images[name]["stages"] if s["action"] == "run"]

    def test_a_new_kernel_runs_three_stages(self, built: tuple[Lab, str]) -> None:
        lab, text = built
        (lab.root / "vmlinuz").write_bytes(bzimage(body=b"newer"))
        result = lab.run(text)
        assert result.images["web"]["reason"] == "KernelChanged"
        assert self.runs(result) == ["kernel", "publish", "record"]

    def test_a_new_name_moves_the_record(self, built: tuple[Lab, str]) -> None:
        lab, text = built
        before = lab.program.rootfs("web").resolve()
        result = lab.run(text.replace('name = "web"', 'name = "site"'))
        assert result.images["site"]["reason"] == "NameChanged"
        assert self.runs(result, "site") == ["record"]
        assert list(result.images) == ["site"]
        assert lab.program.rootfs("site").resolve() == before
        assert list(lab.program.run("status", "--json").images) == ["site"]
        assert not (lab.program.state / "images/by-name/web").is_symlink()

    def test_a_new_tag_of_the_same_digest_is_nothing(self, built: tuple[Lab, str]) -> None:
        lab, text = built
        result = lab.run(text.replace(':1"', ':2"'), "--detailed-exitcode")
        assert result.code == 0
        assert result.images["web"]["action"] == "noop"
        assert not result.document["changed"]
        assert lab.program.run("status", "--json").images["web"]["ref"].endswith(":2")

    def test_a_kernel_by_another_name_and_the_same_bytes_is_nothing(
        self, built: tuple[Lab, str]
    ) -> None:
        lab, text = built
        result = lab.run(text.replace('"lab"', '"other"'), "--detailed-exitcode")
        assert result.code == 0
        assert lab.program.run("status", "--json").images["web"]["kernel"] == "other"

    def test_taking_the_kernel_away_and_back(self, built: tuple[Lab, str]) -> None:
        lab, text = built
        without = text.replace('kernel-ref = "lab"', "")
        assert self.runs(lab.run(without)) == ["publish", "record"]
        assert lab.program.run("launch", "web", "--print").code == 1
        assert "publish" not in self.runs(lab.run(text))


def test_names_that_are_derived_alike_say_to_set_name(lab: Lab) -> None:
    make_layout(lab.root / "other/web", [SMALL])
    result = lab.run('[[image]]\nref = "oci:web"\n[[image]]\nref = "oci:other/web"\n')
    assert result.code == 78
    problem = result.document["errors"][0]["problems"][0]
    assert "set `name`" in problem
    assert problem.startswith(f"{lab.path}:4: ")
