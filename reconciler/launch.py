"""How to start an image that a pass has built: for the `launch` verb, printed and never run.

Command lines for QEMU and Cloud Hypervisor, and the configuration file of Firecracker, all with the
kernel arguments that the guest's parts read (guest/src). Sources: the manual pages of the three.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.errors import Code, ImageError
from reconciler.kernel.image import KernelImage, inspect_kernel
from reconciler.kernel.parts import INITRD, KERNEL
from reconciler.manifest import ROOTFS
from reconciler.records import Records
from reconciler.store import Store
from reconciler.text import printable

MEMORY_MIB = 1024
_CID = 3
"""The first address of vsock that a guest may have (vsock(7))."""

_VSOCK = Path("/dev/vhost-vsock")
"""What QEMU needs for vsock; the other two have a vsock of their own."""

_NETWORK = "ip=10.0.2.15::10.0.2.2:255.255.255.0:::off:10.0.2.3"
"""The addresses of QEMU's network for users, which needs no root, in the kernel's syntax."""

_MACHINES = {
    "amd64": ("qemu-system-x86_64", "q35", "ttyS0"),
    "arm64": ("qemu-system-aarch64", "virt", "ttyAMA0"),
}
"""By architecture: the emulator, its machine, and the console of that machine."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What an image is started with. Paths are absolute; `disk` is the copy for the guest.

    has_vsock: whether QEMU can give the guest a vsock on this host.
    """

    name: str
    artifact: Path
    kernel: Path
    initrd: Path | None
    image: KernelImage
    cmdline: str
    disk: Path
    has_vsock: bool

    @property
    def prepare(self) -> list[str]:
        """Makes the disk: an artifact is never written to."""
        source = str(self.artifact / ROOTFS)
        copy = ["cp", "--reflink=auto", "--sparse=always", "--no-preserve=mode"]
        return [*copy, source, str(self.disk)]

    @property
    def qemu(self) -> list[str]:
        """QEMU, with KVM where the host has it, and a network that needs no set-up."""
        program, machine, console = _MACHINES[self.image.architecture]
        vsock = ("-device", f"vhost-vsock-pci,guest-cid={_CID}") if self.has_vsock else ()
        return [
            *(program, "-M", machine, "-accel", "kvm", "-accel", "tcg", "-cpu", "max"),
            *("-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-nographic"),
            *("-serial", "mon:stdio", "-no-reboot", "-kernel", str(self.kernel)),
            *(("-initrd", str(self.initrd)) if self.initrd else ()),
            *("-append", self._arguments(f"console={console}", "panic=-1", _NETWORK)),
            *("-drive", f"id=root,file={_commas(self.disk)},format=raw,if=none"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
            *vsock,
        ]

    @property
    def cloud_hypervisor(self) -> list[str]:
        """Cloud Hypervisor."""
        console = _MACHINES[self.image.architecture][2]
        socket = self.disk.with_suffix(".vsock")
        return [
            *("cloud-hypervisor", "--kernel", str(self.kernel)),
            *(("--initramfs", str(self.initrd)) if self.initrd else ()),
            *("--cmdline", self._arguments(f"console={console}", "panic=-1")),
            *("--disk", f"path={self.disk}", "--cpus", "boot=1"),
            *("--memory", f"size={MEMORY_MIB}M", "--vsock", f"cid={_CID},socket={socket}"),
            *("--serial", "tty", "--console", "off"),
        ]

    @property
    def firecracker(self) -> dict[str, Any]:
        """The document for `firecracker --no-api --config-file`.

        A Firecracker ends when its guest reboots by the keyboard controller, and in no other way.
        """
        ends = ("reboot=k", "panic=1", "banger.end=reboot")
        source = {
            "kernel_image_path": str(self.kernel),
            "boot_args": self._arguments("console=ttyS0", *ends),
        }
        if self.initrd:
            source["initrd_path"] = str(self.initrd)
        drive = {"drive_id": "root", "path_on_host": str(self.disk)}
        return {
            "boot-source": source,
            "drives": [{**drive, "is_root_device": True, "is_read_only": False}],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "vsock": {"guest_cid": _CID, "uds_path": str(self.disk.with_suffix(".vsock"))},
        }

    @property
    def warnings(self) -> list[str]:
        """What will not work, and why."""
        found = []
        if not self.has_vsock:
            found.append(f"QEMU gives no vsock here: no {_VSOCK}; modprobe vhost_vsock brings it.")
        if self.image.kind == "bzImage":
            found.append(
                "Firecracker, and Cloud Hypervisor before version 39, boot an ELF vmlinux on amd64,"
                f" and this kernel is {self.image}."
            )
        return found

    def _arguments(self, *own: str) -> str:
        """The kernel's command line; the entry's own words come last, where they win."""
        return " ".join(filter(None, (*own, "root=/dev/vda", "rw", self.cmdline)))

    def document(self) -> dict[str, Any]:
        """All of it as JSON; lists of words are command lines."""
        return {
            "schema_version": "1",
            "mode": "launch",
            "name": self.name,
            "prepare": self.prepare,
            "qemu": self.qemu,
            "cloud_hypervisor": self.cloud_hypervisor,
            "firecracker": self.firecracker,
            "warnings": self.warnings,
        }


def read_launch(state_dir: Path, cache_dir: Path, name: str, folder: Path) -> Launch:
    """What `name` is started with; its disk is to lie in `folder`.

    Raises ImageError when there is no such image, or it has no kernel; HostError for a database
    that cannot be read. OSError passes through.
    """
    store = Store(state_dir, cache_dir)
    records = Records(store.database).read().records
    if name not in records:
        known = ", ".join(sorted(records)) or "none"
        raise ImageError(
            f'there is no image "{printable(name, 80)}": built here: {known}',
            code=Code.NOT_FOUND,
            resolution="Build it first: banger-reconcile CONFIG.",
        )
    artifact = store.artifact(records[name].id)
    manifest = store.manifest(artifact)
    kernel, initrd = artifact / KERNEL, artifact / INITRD
    if manifest is None or not kernel.is_file():
        raise ImageError(
            f'the image "{name}" has no kernel',
            code=Code.KERNEL_NOT_FOUND,
            resolution="Set `kernel-ref` in its entry, and run a pass.",
        )
    return Launch(
        name=name,
        artifact=artifact,
        kernel=kernel,
        initrd=initrd if initrd.is_file() else None,
        image=inspect_kernel(kernel, str(kernel)),
        cmdline=manifest.cmdline,
        disk=folder / f"{name}.ext4",
        has_vsock=_VSOCK.exists(),
    )


def shell(words: list[str]) -> str:
    """A command line as a shell reads it back."""
    return shlex.join(words)


def _commas(path: Path) -> str:
    """A path in an option of QEMU, where a comma ends the value and two stand for one."""
    return str(path).replace(",", ",,")
