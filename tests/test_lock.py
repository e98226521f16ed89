"""banger.lock: tags that move, registries that are asked and not asked, files that do not fit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jsonschema
import pytest
import tomli
from support.daemon import watching
from support.images import directory, file, make_layout, push, tar
from support.kernels import bzimage
from support.program import Program, Result
from support.registry import RunningRegistry, registry, running_registry

__all__ = ["registry"]  # a fixture

ROOT = Path(__file__).parent.parent
OUTPUT = jsonschema.Draft7Validator(json.loads((ROOT / "docs/output.schema.json").read_text()))


class Lab:
    """A registry with images whose tags move, and a host that follows a configuration."""

    def __init__(self, root: Path, registry: RunningRegistry, repository: str) -> None:
        self.root, self.registry, self.repository = root, registry, repository
        self.program = Program(root / "host")
        self.path = root / "conf/banger.toml"
        self.path.parent.mkdir()
        self.lock = root / "conf/banger.lock"

    def ref(self, name: str) -> str:
        return f"{self.registry.host}/{self.repository}/{name}:1"

    def push(self, name: str, content: bytes) -> str:
        """Let `NAME:1` stand for an image of this content; its digest."""
        layout = self.root / f"{name}-{content.decode()}"
        digest = make_layout(layout, [tar(directory("etc"), file("etc/content", content))])
        push(layout, self.registry, f"{self.repository}/{name}", "1")
        return digest

    def config(self, *names: str, more: str = "", head: str = "") -> None:
        rows = ["version = 1", "[reconcile]", 'settle = "50ms"', head, "[[registry]]"]
        rows += [f'host = "{self.registry.host}"', "plain-http = true"]
        for name in names:
            rows += ["[[image]]", f'name = "{name}"', f'ref = "{self.ref(name)}"', more]
        rows += ["[defaults]", 'size = "16MiB"', "guest = false"]
        self.path.write_text("\n".join(rows) + "\n")

    def run(self, *words: str) -> Result:
        """Run a verb on the configuration; without one, a pass."""
        verb, options = (words[0], words[1:]) if words and words[0][0] != "-" else ("", words)
        result = self.program.run(*filter(None, (verb,)), self.path, *options, "--json")
        OUTPUT.validate(result.document)
        return result

    def locked(self) -> dict[str, str]:
        return {one["name"]: one["digest"] for one in self.entries()}

    def entries(self) -> list[dict[str, str]]:
        return list(tomli.loads(self.lock.read_text())["image"])

    def digests(self, result: Result) -> dict[str, str]:
        return {name: image["resolved_digest"] for name, image in result.images.items()}


@pytest.fixture
def lab(tmp_path: Path, registry: RunningRegistry) -> Lab:
    return Lab(tmp_path, registry, tmp_path.name.replace("_", "-").lower())


class TestWriting:
    def test_what_it_holds_and_that_its_bytes_stay(self, lab: Lab) -> None:
        old = {name: lab.push(name, b"old") for name in ("web", "db")}
        lab.config("web", "db")
        first = lab.run("lock")
        assert (first.code, first.document["changed"]) == (0, True)
        assert {image["action"] for image in first.images.values()} == {"add"}
        assert lab.locked() == old
        platform = "linux/amd64"
        assert lab.entries()[0] == {
            **{"name": "db", "ref": lab.ref("db"), "digest": old["db"], "platform": platform}
        }
        before, seen = lab.lock.read_bytes(), lab.lock.stat()
        lab.push("web", b"new")
        lab.config("db", "web")  # another order, and a tag that moved: nothing to write
        again = lab.run("lock")
        assert (again.code, again.document["changed"]) == (0, False)
        assert (lab.lock.read_bytes(), lab.lock.stat().st_ino) == (before, seen.st_ino)
        assert [path.name for path in lab.path.parent.iterdir() if path.name[0] == "."] == []

    def test_upgrade_moves_one_only(self, lab: Lab) -> None:
        lab.config("web", "db")
        old = {name: lab.push(name, b"old") for name in ("web", "db")}
        lab.run("lock")
        new = {name: lab.push(name, b"new") for name in ("web", "db")}
        result = lab.run("lock", "--upgrade", "web")
        assert lab.locked() == {"web": new["web"], "db": old["db"]}
        assert result.images["web"]["action"] == "move"
        assert result.images["web"]["before"] == old["web"]
        assert result.images["db"]["action"] == "keep"
        unknown = lab.run("lock", "--upgrade", "wbe")
        assert unknown.code == 1
        assert "web, db" in unknown.err

    def test_a_new_image_leaves_the_others_where_they_are(self, lab: Lab) -> None:
        old = lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        lab.push("web", b"new")
        added = lab.push("db", b"old")
        lab.config("web", "db")
        assert lab.run("lock").images["db"]["action"] == "add"
        assert lab.locked() == {"web": old, "db": added}
        lab.config("db")
        assert lab.run("lock").images["web"]["action"] == "remove"
        assert lab.locked() == {"db": added}

    def test_an_image_that_cannot_be_found_leaves_the_file_as_it_was(self, lab: Lab) -> None:
        lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        before = lab.lock.read_bytes()
        lab.config("web", "nobody")
        failed = lab.run("lock")
        assert failed.code == 1
        assert failed.document["errors"][0]["image"] == "nobody"
        assert "nothing written" in failed.document["msg"]
        assert lab.lock.read_bytes() == before

    def test_a_linked_file_is_written_where_it_lies(self, lab: Lab) -> None:
        lab.push("web", b"old")
        lab.config("web")
        (lab.root / "elsewhere").mkdir()
        lab.lock.symlink_to("../elsewhere/the.lock")
        assert lab.run("lock").code == 0
        assert lab.lock.is_symlink()
        assert "web" in (lab.root / "elsewhere/the.lock").read_text()

    def test_paths_in_it_hold_in_any_clone(self, tmp_path: Path) -> None:
        program = Program(tmp_path / "host")
        make_layout(tmp_path / "one/layouts/web", [tar(file("a", b"a"))])
        config = tmp_path / "one/lab.toml"
        config.write_text('[[image]]\nref = "oci:layouts/web"\nsize = "16MiB"\n')
        assert program.run("lock", config).code == 0
        assert 'ref = "oci:layouts/web"' in (tmp_path / "one/lab.lock").read_text()
        (tmp_path / "one").rename(tmp_path / "two")
        assert program.run(tmp_path / "two/lab.toml", "--locked").code == 0

    def test_a_directory_that_may_not_be_written(self, tmp_path: Path) -> None:
        program = Program(tmp_path / "host")
        make_layout(tmp_path / "web", [tar(file("a", b"a"))])
        config = tmp_path / "banger.toml"
        config.write_text(f'[[image]]\nref = "oci:{tmp_path}/web"\n')
        (tmp_path / "banger.lock").mkdir()  # root may write anywhere, but not over this
        result = program.run("lock", config, "--json")
        assert result.code == 78
        assert "directory" in result.document["errors"][0]["message"]


class TestPasses:
    def test_a_tag_that_moved_changes_nothing_until_it_is_upgraded(self, lab: Lab) -> None:
        old = lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        new = lab.push("web", b"new")
        for options in ((), ("--locked",), ("--frozen",)):
            assert lab.digests(lab.run(*options)) == {"web": old}, options
        assert lab.digests(lab.run("plan", "--locked")) == {"web": old}
        lab.run("lock", "--upgrade", "web")
        result = lab.run("--locked")
        assert lab.digests(result) == {"web": new}
        assert result.images["web"]["reason"] == "DigestChanged"
        lab.lock.unlink()
        assert lab.run().images["web"]["action"] == "noop"

    def test_without_a_lock_file_nothing_is_locked(self, lab: Lab) -> None:
        lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        new = lab.push("web", b"new")
        lab.lock.unlink()
        missing = lab.run("--locked")
        assert missing.code == 1
        error = missing.document["errors"][0]
        assert error["code"] == "lock-stale"
        assert "banger.lock does not exist" in error["message"]
        assert f"banger-reconcile lock {lab.path}" in error["hint"]
        lab.config("web", more='pull = "always"')
        assert lab.digests(lab.run()) == {"web": new}

    def test_what_does_not_fit_is_named(self, lab: Lab) -> None:
        for name in ("web", "db", "old"):
            lab.push(name, b"old")
        lab.config("web", "old")
        lab.run("lock")
        lab.config("web", "db", more='platform = "linux/arm64"')
        for options in (("--locked",), ("--frozen",), ("plan", "--locked")):
            stale = lab.run(*options)
            assert stale.code == 1
            assert not lab.program.rootfs("web").exists()
            problems = "\n".join(stale.document["errors"][0]["problems"])
            assert '"web": platform is "linux/arm64", but "linux/amd64" is locked' in problems
            assert '"db" is not locked' in problems
            assert '"old" is locked, but the configuration does not list it' in problems
        lab.config("web", "db")
        moved = lab.path.read_text().replace(f"{lab.ref('web')}", lab.ref("db"))
        lab.path.write_text(moved)
        assert "ref is" in "\n".join(lab.run("--locked").document["errors"][0]["problems"])

    def test_a_plain_pass_says_what_is_not_locked(self, lab: Lab) -> None:
        old = lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        lab.push("web", b"new")
        added = lab.push("db", b"old")
        lab.config("web", "db")
        result = lab.run()
        assert result.code == 0
        assert lab.digests(result) == {"web": old, "db": added}
        assert any('"db" is not locked' in warning for warning in result.document["warnings"])

    def test_frozen_asks_nobody_what_an_image_is(self, tmp_path: Path) -> None:
        with running_registry(tmp_path / "registry") as own:
            lab = Lab(tmp_path, own, "team")
            old = lab.push("web", b"old")
            lab.config("web")
            lab.run("lock")
            assert lab.run("--frozen").code == 0
        # the registry is gone: all that a pass needs is here
        assert lab.digests(lab.run("--frozen")) == {"web": old}
        assert lab.run("--locked").code == 0
        assert lab.run("lock").code == 0
        for path in (lab.program.cache / "oci/blobs/sha256").iterdir():
            path.unlink()
        frozen = lab.run("--frozen")
        assert frozen.code == 1
        assert frozen.images["web"]["error"]["code"] == "offline"
        assert "--frozen" in frozen.images["web"]["error"]["message"]

    def test_a_digest_that_is_gone_says_how_to_go_on(self, lab: Lab) -> None:
        lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        text = lab.lock.read_text().replace(lab.locked()["web"], "sha256:" + "0" * 64)
        lab.lock.write_text(text)
        gone = lab.run("--locked")
        assert gone.code == 1
        assert gone.images["web"]["error"]["code"] == "not-found"
        assert "--upgrade web" in gone.images["web"]["error"]["hint"]

    def test_a_layout_whose_tag_moved_gives_the_locked_image(self, tmp_path: Path) -> None:
        program = Program(tmp_path / "host")
        config, layout = tmp_path / "banger.toml", tmp_path / "web"
        old = make_layout(layout, [tar(file("a", b"old"))])
        config.write_text('[[image]]\nname = "web"\nref = "oci:web:latest"\nsize = "16MiB"\n')
        program.run("lock", config)
        assert make_layout(layout, [tar(file("a", b"new"))]) != old  # beside the blobs of the old
        result = Program(tmp_path / "fresh").run(config, "--locked", "--json")
        assert result.code == 0, result.err
        assert result.images["web"]["resolved_digest"] == old


class TestKernels:
    @pytest.fixture
    def kernel(self, lab: Lab) -> Path:
        path = lab.root / "vmlinuz"
        path.write_bytes(bzimage())
        lab.push("web", b"old")
        lab.config(
            "web",
            more='kernel-ref = "lab"',
            head=f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{path}" }}',
        )
        return path

    def test_another_kernel_is_refused_by_locked_and_named_by_others(
        self, lab: Lab, kernel: Path
    ) -> None:
        assert lab.run("lock").code == 0
        entry = lab.entries()[0]
        assert (entry["kernel-ref"], entry["kernel-digest"][:7]) == ("lab", "sha256:")
        assert lab.run("--locked").code == 0
        kernel.write_bytes(bzimage(body=b"newer"))
        refused = lab.run("--locked")
        assert refused.code == 1
        error = refused.images["web"]["error"]
        assert (error["code"], error["stage"]) == ("lock-stale", "kernel")
        assert entry["kernel-digest"] in error["message"]
        plain = lab.run()
        assert plain.code == 0
        assert plain.images["web"]["reason"] == "KernelChanged"
        assert any(entry["kernel-digest"] in warning for warning in plain.document["warnings"])
        assert lab.run("lock").images["web"]["action"] == "update"
        assert lab.run("--locked").code == 0

    def test_an_optional_kernel_that_cannot_be_had(self, lab: Lab, kernel: Path) -> None:
        text = lab.path.read_text().replace('name = "lab"', 'name = "lab"\noptional = true')
        lab.path.write_text(text)
        assert lab.run("lock").code == 0
        whole = kernel.read_bytes()
        kernel.unlink()
        refused = lab.run("--locked")
        assert refused.code == 1
        assert "cannot be had" in refused.images["web"]["error"]["message"]
        assert lab.run().code == 0
        lab.run("lock")
        assert lab.entries()[0]["kernel-ref"] == "lab"
        assert "kernel-digest" not in lab.entries()[0]
        assert lab.run("--locked").code == 0
        kernel.write_bytes(whole)
        assert lab.run("--locked").code == 0

    def test_another_kernel_ref_does_not_fit(self, lab: Lab, kernel: Path) -> None:
        lab.run("lock")
        lab.path.write_text(lab.path.read_text().replace('"lab"', '"other"'))
        stale = lab.run("--locked")
        assert stale.code == 1
        assert 'kernel-ref is "other"' in stale.document["errors"][0]["problems"][0]


class TestBroken:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "version"),
            ("version = 2\n", "newer"),
            ("<<<<<<< ours\nversion = 1\n", "banger.lock:1"),
            ("version = 1\n[[image]]\nname = 'a'\n", "digest"),
            ("version = 1\nimages = 3\n", "images"),
            (
                "version = 1\n[[image]]\nname='a'\nref='a'\ndigest='x'\nplatform='linux/amd64'",
                "'x' is no",
            ),
        ],
    )
    def test_a_file_that_is_none_stops_everything(
        self, tmp_path: Path, text: str, said: str
    ) -> None:
        program = Program(tmp_path / "host")
        make_layout(tmp_path / "web", [tar(file("a", b"a"))])
        config, lock = tmp_path / "banger.toml", tmp_path / "banger.lock"
        config.write_text('[[image]]\nname = "web"\nref = "oci:web"\nsize = "16MiB"\n')
        lock.write_text(text)
        for words in ((config,), ("plan", config), ("lock", config), (config, "--locked")):
            result = program.run(*words, "--json")
            assert result.code == 78
            assert said in "\n".join(result.document["errors"][0]["problems"])
        assert lock.read_text() == text

    def test_what_is_no_file_is_neither_read_nor_replaced(self, tmp_path: Path) -> None:
        program = Program(tmp_path / "host")
        make_layout(tmp_path / "web", [tar(file("a", b"a"))])
        config, lock = tmp_path / "banger.toml", tmp_path / "banger.lock"
        config.write_text('[[image]]\nname = "web"\nref = "oci:web"\nsize = "16MiB"\n')
        os.mkfifo(tmp_path / "pipe")
        lock.symlink_to("pipe")
        for words in ((config,), ("lock", config)):
            result = program.run(*words, "--json")
            assert result.code == 78
            assert "no regular file" in result.document["msg"]
        assert (tmp_path / "pipe").is_fifo()


class TestDaemon:
    def test_it_follows_the_lock_file_and_never_writes_it(self, lab: Lab) -> None:
        old = lab.push("web", b"old")
        lab.config("web")
        lab.run("lock")
        new = lab.push("web", b"new")
        with watching(lab.program, lab.path, "--locked") as daemon:
            assert daemon.wait("image.ready")["digest"] == old
            daemon.wait("reconcile.finished")
            seen = lab.lock.stat()
            assert lab.run("lock", "--upgrade", "web").code == 0
            daemon.wait("config.loaded", lambda event: event["generation"] == 2)
            assert daemon.wait("image.ready")["digest"] == new
            daemon.wait("reconcile.finished")
            written = lab.lock.read_bytes()
            assert seen.st_ino != lab.lock.stat().st_ino
            lab.lock.unlink()
            rejected = daemon.wait("config.rejected")
            assert "does not exist" in rejected["message"]
            lab.lock.write_bytes(written)
            daemon.wait("config.loaded")
            lab.config("web", "db")  # not locked: the last good configuration stays
            assert '"db" is not locked' in daemon.wait("config.rejected")["problems"]
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0
        assert lab.lock.read_bytes() == written
        assert {path.name for path in lab.path.parent.iterdir()} == {"banger.toml", "banger.lock"}

    def test_a_cold_start_on_a_stale_file_ends_with_1(self, lab: Lab) -> None:
        lab.config("web")
        result = lab.program.run("--watch", "--locked", lab.path)
        assert result.code == 1
        assert "banger-reconcile lock" in result.err
