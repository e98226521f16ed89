"""Kernels out of OCI images: whole, by file, from layouts and registries, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import images
from support.images import directory, entry, file, symlink, tar
from support.kernels import INITRD, RELEASE, arm64_image, bzimage, elf
from support.program import Program
from support.registry import RunningRegistry, running_registry

NEWER = "6.10.0-1-amd64"
MODULE = file(f"lib/modules/{RELEASE}/kernel/fs/some.ko", b"a module")
KERNEL_IMAGE = [
    tar(file("boot/vmlinuz-6.9.0", bzimage("6.9.0")), MODULE),
    tar(
        file("boot/.wh.vmlinuz-6.9.0"),
        file(f"boot/vmlinuz-{RELEASE}", bzimage()),
        symlink("boot/vmlinuz", f"../boot/vmlinuz-{RELEASE}"),
        file("boot/initrd.img", INITRD),
        symlink(f"lib/modules/{RELEASE}/build", "/usr/src/headers"),
        file(f"lib/modules/{RELEASE}/modules.builtin"),
        entry(f"lib/modules/{RELEASE}/fifo", b"6"),
    ),
]
WHOLE = '[[kernel]]\nname = "lab"\nimage = "{}"\n'
PARTS = """[[kernel]]
name = "lab"
kernel = {{ image = "{0}", file = "/boot/vmlinuz" }}
initrd = {{ image = "{0}", file = "boot/initrd.img" }}
modules = {{ image = "{0}", file = "/lib/modules/RELEASE" }}
""".replace("RELEASE", RELEASE)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    images.make_layout(tmp_path / "guest", [tar(file("etc/hostname", b"web\n"))])
    images.make_layout(tmp_path / "kernel", KERNEL_IMAGE)
    return Program(tmp_path)


def write(program: Program, kernel: str, ref: str = "oci:kernel") -> Path:
    config = program.root / "banger.toml"
    image = '\n[[image]]\nname = "web"\nref = "oci:guest"\nsize = "64MiB"\nkernel-ref = "lab"\n'
    config.write_text(kernel.format(ref) + image)
    return config


def check(artifact: Path) -> None:
    assert (artifact / "kernel").read_bytes() == bzimage()
    release = artifact / "modules" / RELEASE
    assert (release / "kernel/fs/some.ko").read_bytes() == b"a module"
    assert (release / "build").readlink() == Path("/usr/src/headers")
    assert not (release / "fifo").exists()


@pytest.mark.parametrize("kernel", [WHOLE, PARTS], ids=["whole", "parts"])
def test_a_kernel_out_of_a_layout(program: Program, kernel: str) -> None:
    config = write(program, kernel)
    planned = program.run("plan", "--json", config)
    assert planned.images["web"]["error"] is None, planned.out
    assert not (program.state / "kernels").exists(), "a plan keeps nothing"
    built = program.run("--json", config)
    assert built.code == 0, built.out + built.err
    assert built.images["web"]["id"] == planned.images["web"]["id"]
    artifact = Path(built.images["web"]["path"])
    check(artifact)
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    digest = json.loads((program.root / "kernel/index.json").read_bytes())["manifests"][0]["digest"]
    assert manifest["kernel_from"] == f"oci:{program.root}/kernel@{digest}"
    assert ("initrd.img" in manifest["files"]) == (kernel is PARTS)
    assert program.run("--json", config).document["changed"] is False


def test_a_kernel_out_of_a_registry_follows_its_tag(
    program: Program, registry: RunningRegistry
) -> None:
    layout = program.root / "kernel"
    images.push(layout, registry, "lab/kernel", "6.1")
    config = write(program, f'{WHOLE}[[registry]]\nhost = "{registry.host}"\nplain-http = true\n',
                   f"{registry.host}/lab/kernel:6.1")  # fmt: skip
    planned = program.run("plan", "--json", config)
    assert "is not downloaded yet" in planned.images["web"]["error"]["message"]
    assert program.run(config).code == 0
    first = program.rootfs("web").parent.resolve()
    check(first)
    assert program.run("plan", "--json", config).document["changed"] is False
    images.make_layout(layout, [*KERNEL_IMAGE, tar(file(f"boot/vmlinuz-{RELEASE}", elf()))])
    images.push(layout, registry, "lab/kernel", "6.1")
    moved = program.run("--json", config)
    assert (moved.code, moved.images["web"]["reason"]) == (0, "KernelChanged")
    assert (program.rootfs("web").parent / "kernel").read_bytes() == elf()
    offline = program.run("--offline", "--json", config)
    assert (offline.code, offline.document["changed"]) == (0, False)


def test_the_copy_stands_in_for_a_registry_that_is_gone(
    program: Program,
) -> None:
    with running_registry(program.root / "registry") as registry:
        images.push(program.root / "kernel", registry, "lab/kernel", "6.1")
        kernel = f'{WHOLE}[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
        assert program.run(write(program, kernel, f"{registry.host}/lab/kernel:6.1")).code == 0
    again = program.run("--json", program.root / "banger.toml")
    assert (again.code, again.document["changed"]) == (0, False), again.out


def test_the_newest_of_several_releases_and_an_elf_first(program: Program) -> None:
    several = [file(f"boot/vmlinuz-{r}", bzimage(r)) for r in ("6.9.0", NEWER, RELEASE)]
    images.make_layout(program.root / "kernel", [tar(*several)])
    config = write(program, WHOLE)
    assert program.run(config).code == 0
    assert (program.rootfs("web").parent / "kernel").read_bytes() == bzimage(NEWER)
    images.make_layout(program.root / "kernel", [tar(*several, file("boot/vmlinux", elf()))])
    assert program.run(config).code == 0
    assert (program.rootfs("web").parent / "kernel").read_bytes() == elf()


def test_the_platform_chooses_out_of_an_index(program: Program) -> None:
    layout = program.root / "kernel"
    arm = images.add_image(
        layout, [tar(file("boot/vmlinux", arm64_image()))], platform=("linux", "arm64")
    )
    amd = images.add_image(layout, [tar(file("boot/vmlinux", elf()))])
    images.write_index(layout, [arm, amd])
    assert program.run(write(program, WHOLE)).code == 0
    assert (program.rootfs("web").parent / "kernel").read_bytes() == elf()
    wrong = program.run("--json", write(program, WHOLE + 'platform = "linux/arm64"\n'))
    assert "Image for arm64" in wrong.images["web"]["error"]["message"]


HOSTILE = {
    "no kernel": ([file("boot/readme", b"hello")], WHOLE, "no /boot/vmlinux"),
    "no file": ([file("boot/readme", b"hello")], PARTS, "no file /boot/vmlinuz"),
    "out of the image": ([symlink("boot", "../../../../boot")], WHOLE, "no /boot/vmlinux"),
    "a loop": ([symlink("boot/vmlinuz", "vmlinuz")], WHOLE, "no /boot/vmlinux"),
    "a directory": ([directory("boot/vmlinuz/")], PARTS, "no file /boot/vmlinuz"),
    "no modules": ([file("boot/vmlinuz", bzimage()), file("boot/initrd.img", INITRD)], PARTS,
                   "no directory /lib/modules"),
    "not a kernel": ([file("boot/vmlinuz", b"#!/bin/sh\n")], WHOLE, "a script, not a kernel"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(program: Program, name: str) -> None:
    entries, kernel, words = HOSTILE[name]
    images.make_layout(program.root / "kernel", [tar(*entries)])
    refused = program.run("--json", write(program, kernel))
    assert refused.code == 1
    error = refused.images["web"]["error"]
    assert words in error["message"], error
    assert not list((program.state / "kernels").glob(".*staging"))


def test_a_damaged_blob_of_a_kernel_is_fetched_again(program: Program) -> None:
    config = write(program, WHOLE)
    assert program.run(config).code == 0
    before = program.rootfs("web").parent.resolve()
    for blob in (program.cache / "oci/blobs/sha256").iterdir():
        if blob.stat().st_size > 1000:
            blob.write_bytes(b"x" * blob.stat().st_size)
    place = program.state / "kernels/.origins/lab/image.from"
    place.unlink()
    again = program.run("--json", config)
    assert (again.code, again.document["changed"]) == (0, False), again.out
    check(before)


def test_an_optional_kernel_is_done_without_where_it_cannot_be_had(program: Program) -> None:
    kernel = '[[kernel]]\nname = "lab"\napt = "linux-image-cloud-amd64"\noptional = true\n'
    alone = Program(program.root, env={"PATH": str(without_apt(program.root / "bin"))})
    built = alone.run("--json", write(program, kernel))
    assert built.code == 0, built.out + built.err
    (warning,) = built.document["warnings"]
    assert warning.startswith("web: goes without its kernel: ")
    assert "apt" in warning
    assert not (program.rootfs("web").parent / "kernel").exists()
    status = program.run("launch", "web", "--print")
    assert "has no kernel" in status.err
    later = program.run("--json", write(program, WHOLE + "optional = true\n"))
    assert (later.code, later.images["web"]["reason"]) == (0, "KernelChanged")
    assert later.document["warnings"] == []


def test_an_optional_kernel_that_is_wrong_is_still_wrong(program: Program) -> None:
    images.make_layout(program.root / "kernel", [tar(file("boot/vmlinuz", b"#!/bin/sh\n"))])
    refused = program.run("--json", write(program, WHOLE + "optional = true\n"))
    assert "not a kernel" in refused.images["web"]["error"]["message"]


def without_apt(place: Path) -> Path:
    """A directory for PATH in which apt-get fails, as on a machine that reaches no mirror."""
    place.mkdir()
    (place / "apt-get").write_text("#!/bin/sh\necho 'E: cannot reach the mirror' >&2\nexit 100\n")
    (place / "apt-get").chmod(0o755)
    return place
