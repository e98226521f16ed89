"""banger.toml: what it may hold, what each key becomes, and what is said about what is wrong."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.load import Config, load, parse
from reconciler.config.problems import key_lines
from reconciler.config.schema import Document
from reconciler.errors import ConfigError
from reconciler.model import FileSource, Platform

ROOT = Path(__file__).parent.parent
BASE = Path("/srv/lab")
GIB = 2**30
SHA = "ab" * 32

FULL = f"""
version = 1

[reconcile]
interval = "1h30m"
jitter = 0.2
jobs = 4
timeout = "45m"
settle = "250ms"
retry = {{ base = "1s", factor = 3, max = "1m" }}

[defaults]
size = "8GiB"
kernel-ref = "generic-6.1"
pull = "always"
platform = "linux/arm64/v8"
retain = 3
guest = false
inject-modules = true
builder = "tools"
protect = true

[prune]
images = true
grace = "2h"
max = 5
allow-empty = true

[gc]
staging-min-age = "2h"
blob-min-age = "48h"

[guest]
vsock-port = 5000

[[kernel]]
name = "generic-6.1"
kernel = {{ path = "boot/vmlinuz", sha256 = "sha256:{SHA.upper()}" }}
initrd = {{ url = "https://files.lab/initrd.img", sha256 = "{SHA}" }}
modules = {{ path = "/lib/modules/6.1" }}
cmdline = "console=ttyS0"

[[registry]]
host = "GHCR.io"
mirrors = ["mirror.lab:5000/ghcr"]
username-file = "user"
password-file = "/etc/banger/password"
ca-file = "lab.pem"
plain-http = true

[[image]]
name = "web"
ref = "ghcr.io/x/web:1.2"
size = "auto"
kernel-ref = ""
retain = 1
suspend = true

[[image]]
ref = "oci:../layouts/hello:latest"
protect = false
"""


def of(text: str) -> Config:
    return parse(text.encode(), BASE, Path("banger.toml"))


def test_every_key_arrives() -> None:
    config = of(FULL)
    reconcile = config.reconcile
    assert (reconcile.interval, reconcile.jitter, reconcile.jobs) == (5400, 0.2, 4)
    assert (reconcile.timeout, reconcile.settle) == (2700, 0.25)
    assert (reconcile.retry.base, reconcile.retry.factor, reconcile.retry.max) == (1, 3, 60)
    prune = config.prune
    assert (prune.images, prune.grace, prune.allow_empty) == (True, 7200, True)
    assert (prune.max_count, prune.max_percent) == (5, None)
    assert (config.gc.staging_min_age, config.gc.blob_min_age) == (7200, 172800)
    assert config.guest.vsock_port == 5000
    assert config.sha256 == hashlib.sha256(FULL.encode()).hexdigest()
    (registry,) = config.registries
    assert (registry.host, registry.plain_http) == ("ghcr.io", True)
    assert registry.mirrors == ("mirror.lab:5000/ghcr",)
    assert (registry.username_file, registry.ca_file) == (BASE / "user", BASE / "lab.pem")
    assert registry.password_file == Path("/etc/banger/password")


def test_an_entry_stands_over_the_defaults() -> None:
    web, hello = of(FULL).images
    assert (web.name, web.ref, web.size, web.kernel_ref) == ("web", "ghcr.io/x/web:1.2", None, None)
    assert (web.retain, web.suspend, web.protect, web.guest) == (1, True, True, False)
    assert web.platform == hello.platform == Platform("linux", "arm64", "v8")
    assert (hello.size, hello.kernel_ref, hello.retain) == (8 * GIB, "generic-6.1", 3)
    assert (hello.pull, hello.builder, hello.inject_modules) == ("always", "tools", True)
    assert (hello.protect, hello.suspend) == (False, False)


def test_paths_are_relative_to_the_file() -> None:
    config = of(FULL)
    assert config.images[1].ref == "oci:/srv/lab/../layouts/hello:latest"
    assert config.images[1].name == "hello-latest"
    (kernel,) = config.kernels
    assert kernel.kernel == FileSource(BASE / "boot/vmlinuz", None, SHA)
    assert kernel.initrd == FileSource(None, "https://files.lab/initrd.img", SHA)
    assert kernel.modules == FileSource(Path("/lib/modules/6.1"), None, None)
    assert kernel.cmdline == "console=ttyS0"


def test_absolute_references_stay_as_they_are() -> None:
    for ref in (
        "oci:/a/b:1",
        "docker-archive:/a/b.tar",
        "ghcr.io/a/b:1",
        f"ghcr.io/a/b@sha256:{SHA}",
    ):
        assert of(f'[[image]]\nname = "x"\nref = "{ref}"').images[0].ref == ref


def test_an_empty_file_is_valid_and_has_the_defaults() -> None:
    config = of("")
    assert (config.images, config.kernels, config.registries) == ((), (), ())
    assert (config.reconcile.interval, config.reconcile.jobs) == (600, 2)
    assert (config.reconcile.jitter, config.reconcile.settle) == (0.1, 0.5)
    assert (config.prune.images, config.prune.max_percent, config.prune.max_count) == (
        False,
        25,
        None,
    )
    assert config.guest.vsock_port == 42070


def test_an_image_needs_no_more_than_a_reference() -> None:
    (image,) = of('[[image]]\nref = "docker.io/library/debian:bookworm"').images
    assert (image.name, image.size, image.kernel_ref) == ("debian-bookworm", 2 * GIB, None)
    assert (image.platform, image.pull, image.retain) == (Platform("linux", "amd64"), "missing", 1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1024", GIB), ('"1024"', GIB), ('" 1.5g "', 1536 * 2**20), ('"auto"', None)],
)
def test_sizes(size: str, expected: int | None) -> None:
    assert of(f'[[image]]\nref = "a"\nsize = {size}').images[0].size == expected


def test_an_unknown_kernel_is_no_configuration_error() -> None:
    assert of('[[image]]\nref = "a"\nkernel-ref = "local"').images[0].kernel_ref == "local"


# -- files --------------------------------------------------------------------------------


def test_load_reads_a_file_beside_which_its_paths_lie(tmp_path: Path) -> None:
    path = tmp_path / "banger.toml"
    path.write_text('[[image]]\nref = "oci:hello"\n')
    config = load(path)
    assert config.path == path
    assert config.images[0].ref == f"oci:{tmp_path}/hello"


def test_load_works_with_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "banger.toml").write_text('[[image]]\nref = "oci:hello"\n')
    monkeypatch.chdir(tmp_path)
    assert load(Path("banger.toml")).images[0].ref == f"oci:{tmp_path}/hello"


def test_load_of_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "large").write_bytes(b"#" * (5 << 20))
    (tmp_path / "file").touch()
    for name, words in {
        "": "is a directory",
        "missing.toml": "does not exist",
        "dangling": "is a link to nowhere, which does not exist",
        "large": "larger than 4MiB",
        "file/banger.toml": "Not a directory",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)


def test_load_of_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "banger.toml"
    path.touch(mode=0o000)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="may not be read") as caught:
            load(path)
    finally:
        os.seteuid(user)
    assert "read it" in caught.value.resolution


@given(st.text(alphabet="[]=\"'\n a.1#{},-kx", max_size=40))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    key_lines(text)
    try:
        of(text)
    except ConfigError as error:
        assert error.problems


# -- the documents ----------------------------------------------------------------------


def test_the_example_parses() -> None:
    config = load(ROOT / "examples/banger.toml")
    assert config.images
    assert {i.name: i.kernel_ref for i in config.images} == {
        "hello-latest": "debian",
        "hello-plain": None,
    }
    assert all(kernel.optional for kernel in config.kernels), "it builds where there is no apt"


def test_docs_name_every_key_and_their_examples_parse() -> None:
    text = (ROOT / "docs/config.md").read_text()
    for name, field in Document.model_fields.items():
        tables = (field.annotation, *getattr(field.annotation, "__args__", ()))
        assert f"[{name}]" in text or f"`{name}`" in text
        for table in tables:
            for key, inner in getattr(table, "model_fields", {}).items():
                assert f"`{inner.alias or key}`" in text, f"{name}: {key} is not in docs/config.md"
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        of(block)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('apt = "linux-image-cloud-amd64"', (None, "linux-image-cloud-amd64", False, False)),
        ('apt = "linux-image-amd64:amd64=6.1.1-1~x"\ninitrd = "generated"',
         (None, "linux-image-amd64:amd64=6.1.1-1~x", False, True)),
        ('host = true\ninitrd = "generated"', (None, None, True, True)),
    ],
)  # fmt: skip
def test_kernels_that_are_no_files(keys: str, expected: tuple[object, ...]) -> None:
    (kernel,) = parse(f'[[kernel]]\nname = "k"\n{keys}\n'.encode(), BASE, BASE / "f").kernels
    found = (kernel.kernel, kernel.package, kernel.is_host, kernel.generates_initrd)
    assert found == expected


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("", "needs one of"),
        ('apt = "x-y"\nhost = true', "needs one of"),
        ('apt = "x-y"\nkernel = { path = "k" }', "needs one of"),
        ('apt = "x y"', "no name of a package"),
        ('apt = "-o=x"', "no name of a package"),
        ('apt = "x-y"\nmodules = { path = "m" }', "bring their own"),
        ('kernel = { path = "k" }\ninitrd = "generated"', "needs `modules`"),
    ],
)
def test_kernels_that_contradict_themselves(keys: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f'[[kernel]]\nname = "k"\n{keys}\n'.encode(), BASE, BASE / "f")
    assert complaint in str(caught.value.problems)
