"""`inject-modules`: the kernel's modules in the rootfs, where modprobe of the guest finds them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import images
from support.builders import listing
from support.images import directory, file, symlink, tar
from support.kernels import RELEASE, bzimage
from support.modules import PLAIN, module, tree
from support.program import Program

from reconciler.errors import Code, ImageError
from reconciler.kernel.depmod import make_lists
from reconciler.kernel.injected import module_assets

ALIASES = {
    "drivers/net/a-net.ko": module("depends=virtio", "alias=pci:v00001AF4d-[0-9]*", "alias=x-y"),
    "fs/fuse.ko": module("depends=", "alias=devname:fuse", "alias=char-major-10-229"),
}
ROOTS = {
    "merged": [
        directory("usr/lib/", uid=3),
        symlink("lib", "usr/lib"),
        file("usr/lib/modules/own/kept", b"the image's own"),
        file(f"usr/lib/modules/{RELEASE}/modules.dep", b"of another kernel"),
    ],
    "plain": [file("lib/some", b"lib")],
}


def built_in(root: Path) -> Path:
    made = tree(
        root / RELEASE,
        PLAIN | ALIASES,
        "kernel/lib/crc-t10dif.ko\n",
        b"crc_t10dif.alias=crypto-crc\0crc_t10dif.license=GPL\0",
    )
    (made / "modules.order").write_text("kernel/fs/fuse.ko\nkernel/drivers/net/a-net.ko\n")
    (made / "build").symlink_to("/usr/src/linux-headers")
    return made


@pytest.fixture
def program(tmp_path: Path) -> Program:
    for name, entries in ROOTS.items():
        images.make_layout(tmp_path / name, [tar(*entries)])
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    built_in(tmp_path / "modules")
    return Program(tmp_path)


def write(program: Program, keys: str, *, kernel: bool = True) -> Path:
    config = program.root / "banger.toml"
    source = 'kernel = { path = "vmlinuz" }\nmodules = { path = "modules" }\n'
    ref = 'kernel-ref = "lab"' if kernel else ""
    tables = [f'[[image]]\nname = "{n}"\nref = "oci:{n}"\n{ref}\n{keys}\n' for n in ROOTS]
    config.write_text(f'[[kernel]]\nname = "lab"\n{source}\n' + "\n".join(tables))
    return config


@pytest.mark.parametrize("size", ['"auto"', '"64MiB"'])
def test_both_builders_put_them_where_the_image_leads(program: Program, size: str) -> None:
    found = {}
    for builder in ("direct", "tools"):
        config = write(program, f'inject-modules = true\nsize = {size}\nbuilder = "{builder}"')
        done = program.run("--json", config)
        assert done.code == 0, done.out + done.err
        found[builder] = {name: listing(program.rootfs(name)) for name in ROOTS}
        assert program.run("--json", config).document["changed"] is False
    assert found["direct"] == found["tools"]
    merged, plain = found["direct"]["merged"], found["direct"]["plain"]
    inside = f"usr/lib/modules/{RELEASE}/".encode()
    assert merged[inside + b"kernel/fs/fuse.ko"][1:4] == (0o100644, 0, 0)
    assert merged[b"usr/lib"][2] == 3
    assert b"usr/lib/modules/own/kept" in merged
    assert inside + b"build" not in merged
    assert b"etc/modules-load.d/banger-vsock.conf" in plain
    same = {k.removeprefix(b"usr/"): v[1:] for k, v in merged.items() if k.startswith(inside)}
    assert same == {p: v[1:] for p, v in plain.items() if p.startswith(inside[4:])}


def test_modprobe_finds_them(program: Program, tmp_path: Path) -> None:
    if shutil.which("modprobe") is None:
        pytest.skip("no modprobe on this machine: contrib/install-packages test installs it")
    assert program.run(write(program, "inject-modules = true\nsize = 'auto'")).code == 0
    place = tmp_path / "lib"
    place.mkdir()
    dump = ["debugfs", "-R", f"rdump /lib/modules {place}", program.rootfs("plain")]
    subprocess.run(dump, check=True, capture_output=True)

    def loads(name: str) -> list[str]:
        command = ["modprobe", "-d", tmp_path, "-S", RELEASE, "--show-depends", name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [line.split()[-1].rsplit("/", 1)[-1] for line in said.splitlines()]

    assert loads("virtio_blk") == ["virtio.ko", "virtio_ring.ko", "virtio_blk.ko"]
    assert loads("pci:v00001AF4d-5") == ["virtio.ko", "a-net.ko"]
    assert loads("x_y") == ["virtio.ko", "a-net.ko"]
    assert loads("crc-t10dif")[-1] == "crc_t10dif"
    assert loads("crypto-crc")[-1] == "crc_t10dif"


def test_the_lists_are_those_of_depmod(tmp_path: Path) -> None:
    if shutil.which("depmod") is None:
        pytest.skip("no depmod on this machine: contrib/install-packages test installs it")
    release = built_in(tmp_path / "lib/modules")
    ours = make_lists(release)
    subprocess.run(["depmod", "-b", tmp_path, RELEASE], check=True, capture_output=True)
    for name in ("alias", "builtin", "builtin.alias"):
        assert ours[f"modules.{name}.bin"] == (release / f"modules.{name}.bin").read_bytes(), name
    for name in ("alias", "softdep", "devname"):  # dep: by symbols, of which these have none
        theirs = (release / f"modules.{name}").read_text().splitlines()
        lines = [line for line in theirs if not line.startswith("#")]
        assert sorted(ours[f"modules.{name}"].decode().splitlines()) == sorted(lines), name


def test_lists_that_are_there_stay(tmp_path: Path) -> None:
    release = built_in(tmp_path)
    (release / "modules.dep.bin").write_bytes(b"as the distribution made it")
    paths = {asset.path: asset for asset in module_assets(tmp_path)}
    assert b"".join(paths[f"/lib/modules/{RELEASE}/modules.dep.bin"].pieces()).startswith(b"as the")
    assert f"/lib/modules/{RELEASE}/modules.alias" not in paths


def test_a_new_kernel_is_a_reason(program: Program) -> None:
    config = write(program, "inject-modules = true\nsize = 'auto'")
    assert program.run(config).code == 0
    (program.root / "modules" / RELEASE / "kernel/fs/more.ko").write_bytes(module("depends="))
    planned = program.run("plan", "--json", config)
    assert {i["reason"] for i in planned.images.values()} == {"KernelChanged"}
    (kernel,) = (s for s in planned.images["plain"]["stages"] if s["name"] == "kernel")
    assert kernel["reason"] == "lab goes beside the rootfs, its modules into it, too"
    done = program.run("--json", config)
    assert [s["name"] for s in done.images["plain"]["stages"] if s["status"] == "failed"] == []
    assert done.code == 0
    assert b"lib/modules/%s/kernel/fs/more.ko" % RELEASE.encode() in listing(
        program.rootfs("plain")
    )


def test_a_size_that_is_too_small_for_them_is_refused(program: Program) -> None:
    large = program.root / "modules" / RELEASE / "kernel/large.ko"
    large.write_bytes(module("depends=") + bytes(range(256)) * (40 << 12))
    refused = program.run("--json", write(program, "inject-modules = true\nsize = '32MiB'"))
    error = refused.images["plain"]["error"]
    assert error["code"] == "size-too-small", error
    words = "inject-modules = true\nsize = '{}'"
    enough = error["message"].rsplit(" ", 1)[-1]
    assert program.run(write(program, words.format(enough))).code == 0


@pytest.mark.parametrize(
    ("keys", "kernel", "words"),
    [("inject-modules = true", False, "there is no kernel-ref")],
)
def test_what_cannot_be_asked_for(program: Program, keys: str, kernel: bool, words: str) -> None:
    refused = program.run("--json", write(program, keys, kernel=kernel))
    assert words in refused.images["plain"]["error"]["message"]


def test_guest_false_puts_nothing_in(program: Program) -> None:
    config = write(program, "guest = false\nsize = '64MiB'")
    config.write_text("[defaults]\ninject-modules = true\n" + config.read_text())
    assert program.run(config).code == 0
    assert b"lib/modules" not in listing(program.rootfs("plain"))
    both = program.run("validate", write(program, "guest = false\ninject-modules = true"))
    assert both.code == 78
    assert "guest = false puts nothing in" in both.err


def test_modules_with_names_that_none_has_are_refused(tmp_path: Path) -> None:
    release = built_in(tmp_path)
    (release / "kernel/a\nb.ko").write_bytes(module("depends="))
    with pytest.raises(ImageError, match="has a name that no module has") as caught:
        module_assets(tmp_path)
    assert caught.value.code is Code.KERNEL_INVALID


def test_a_chain_of_modules_without_end_is_refused(tmp_path: Path) -> None:
    chain = {f"m{n}.ko": module(f"depends=m{n + 1}") for n in range(2000)}
    chain["m2000.ko"] = module("depends=m0")
    with pytest.raises(ImageError, match="too long a chain"):
        make_lists(tree(tmp_path / RELEASE, chain))
