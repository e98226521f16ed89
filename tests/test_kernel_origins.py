"""Kernels that are no files yet: the host's own, a generated initrd, packages of apt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.kernels import RELEASE, at, bzimage, ignore, no_download
from support.modules import PLAIN, tree
from test_kernel_initramfs import contents

from reconciler.errors import Code, HostError, ImageError
from reconciler.kernel import origins
from reconciler.kernel.origins import Origins
from reconciler.kernel.store import KernelStore
from reconciler.model import KernelEntry


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two kernels, of which the newer has the name that sorts first."""
    boot = tmp_path / "host/boot"
    boot.mkdir(parents=True)
    newer = "6.10.0-1-amd64"
    (boot / f"vmlinuz-{RELEASE}").write_bytes(bzimage())
    (boot / f"vmlinuz-{newer}").write_bytes(bzimage(newer))
    tree(tmp_path / "host/lib/modules" / newer, PLAIN)
    monkeypatch.setattr(origins, "_HOST", tmp_path / "host")
    return tmp_path / "host"


def host_entry() -> KernelEntry:
    return KernelEntry("mine", None, is_host=True, generates_initrd=True)


def test_the_hosts_newest_kernel_with_an_initrd_of_its_modules(host: Path, tmp_path: Path) -> None:
    kernels = KernelStore(tmp_path / "kernels", (host_entry(),))
    triple = kernels.identify("mine")
    place = kernels.fetch("mine", no_download, ignore)
    assert (place / "kernel").read_bytes() == bzimage("6.10.0-1-amd64")
    assert "init" in contents((place / "initrd.img").read_bytes())
    assert (place / "modules/6.10.0-1-amd64/modules.builtin").exists()
    assert KernelStore(tmp_path / "kernels", (host_entry(),)).identify("mine") == triple


def test_a_changed_module_gives_another_initrd(host: Path, tmp_path: Path) -> None:
    before = KernelStore(tmp_path / "kernels", (host_entry(),)).identify("mine")
    module = host / "lib/modules/6.10.0-1-amd64/kernel/fs/ext4/ext4.ko"
    module.write_bytes(module.read_bytes() + b"more")
    after = KernelStore(tmp_path / "kernels", (host_entry(),)).identify("mine")
    assert after.initrd != before.initrd
    assert after.kernel == before.kernel


def test_a_plan_keeps_what_it_makes_aside(host: Path, tmp_path: Path) -> None:
    root, aside = tmp_path / "kernels", tmp_path / "aside"
    planned = KernelStore(root, (host_entry(),), Origins(root, aside)).identify("mine")
    assert not root.exists()
    assert KernelStore(root, (host_entry(),)).identify("mine") == planned
    again = KernelStore(root, (host_entry(),), Origins(root, tmp_path / "unused"))
    assert again.identify("mine") == planned
    assert not (tmp_path / "unused").exists()


def test_a_host_without_a_kernel_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "_HOST", tmp_path)
    with pytest.raises(ImageError, match="no /boot/vmlinuz") as caught:
        Origins(tmp_path / "kernels").plain(host_entry())
    assert caught.value.code is Code.KERNEL_NOT_FOUND
    assert "apt =" in caught.value.resolution


def test_an_initrd_is_generated_from_given_modules(tmp_path: Path) -> None:
    modules = tree(tmp_path / "modules" / RELEASE, PLAIN)
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    entry = KernelEntry(
        "given", at(tmp_path / "vmlinuz"), modules=at(modules.parent), generates_initrd=True
    )
    place = KernelStore(tmp_path / "kernels", (entry,)).fetch("given", no_download, ignore)
    assert "modules/ext4.ko" in contents((place / "initrd.img").read_bytes())
    without = KernelEntry("given", at(tmp_path / "vmlinuz"), generates_initrd=True)
    with pytest.raises(ImageError, match="generated from modules"):
        KernelStore(tmp_path / "kernels", (without,)).identify("given")


PACKAGED = KernelEntry("cloud", None, package="linux-image-cloud-amd64")


def test_a_plan_downloads_nothing(tmp_path: Path) -> None:
    aside = Origins(tmp_path / "kernels", tmp_path / "aside")
    with pytest.raises(ImageError, match="not downloaded yet") as caught:
        aside.plain(PACKAGED)
    assert "next pass" in caught.value.brief
    assert not (tmp_path / "kernels").exists()


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("reconciler.tools.SYSTEM_DIRECTORIES", ())
    with pytest.raises(HostError, match="apt-get was not found") as caught:
        Origins(tmp_path / "kernels").plain(PACKAGED)
    assert caught.value.code is Code.TOOL_MISSING
    assert "Debian" in caught.value.resolution


def test_a_package_that_does_not_exist_is_apts_complaint(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this machine")
    entry = KernelEntry("none", None, package="linux-image-no-such-flavour")
    with pytest.raises(HostError, match=r"apt-get failed.*no-such-flavour") as caught:
        Origins(tmp_path / "kernels").plain(entry)
    assert caught.value.code is Code.TOOL_FAILED
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_package_is_kept_until_its_name_changes(tmp_path: Path) -> None:
    """What apt brought is not asked for again: a mirror must not change a kernel."""
    place = tmp_path / "kernels/.origins/cloud"
    (place / "package/boot").mkdir(parents=True)
    (place / "package/boot" / f"vmlinuz-{RELEASE}").write_bytes(bzimage())
    (place / "package.from").write_text("linux-image-cloud-amd64\n")
    found = Origins(tmp_path / "kernels").plain(PACKAGED)
    assert found.kernel == at(place / "package/boot" / f"vmlinuz-{RELEASE}")
    assert found.modules is None
    other = KernelEntry("cloud", None, package="linux-image-amd64")
    with pytest.raises(ImageError, match="not downloaded yet"):
        Origins(tmp_path / "kernels", tmp_path / "aside").plain(other)
