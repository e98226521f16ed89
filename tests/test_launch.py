"""The `launch` verb: what it prints starts the image that was built."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from support import images
from support.kernels import INITRD, bzimage, elf
from support.program import Program

CONFIG = """
[[kernel]]
name = "cloud"
kernel = {{ path = "vmlinuz" }}
initrd = {{ path = "initrd" }}
cmdline = "quiet console=tty0"

[[image]]
name = "web"
ref = "oci:image"
size = "16MiB"
guest = false
kernel-ref = "cloud"

[[image]]
name = "bare"
ref = "oci:image"
size = "16MiB"
guest = false
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    made = Program(tmp_path / "a, b")
    images.make_layout(made.root / "image", [images.tar(images.file("hello", b"hi"))])
    (made.root / "vmlinuz").write_bytes(bzimage())
    (made.root / "initrd").write_bytes(INITRD)
    config = made.root / "banger.toml"
    config.write_text(CONFIG.format())
    done = made.run(config)
    assert done.code == 0, done.err
    return made


def test_json_names_the_artifact_and_the_arguments(program: Program) -> None:
    document = program.run("launch", "web", "--print", "--json").document
    artifact = (program.state / "images/by-name/web").resolve()
    source = document["firecracker"]["boot-source"]
    assert source["kernel_image_path"] == str(artifact / "kernel")
    assert source["initrd_path"] == str(artifact / "initrd.img")
    arguments = source["boot_args"].split()
    assert {"reboot=k", "panic=1", "banger.end=reboot", "root=/dev/vda", "rw"} <= set(arguments)
    assert arguments[-2:] == ["quiet", "console=tty0"]
    assert document["firecracker"]["drives"][0]["is_root_device"] is True
    qemu, cloud = document["qemu"], document["cloud_hypervisor"]
    assert qemu[qemu.index("-kernel") + 1] == cloud[cloud.index("--kernel") + 1]
    assert qemu[qemu.index("-append") + 1].split()[-2:] == arguments[-2:]
    assert document["prepare"][-2] == str(artifact / "rootfs.ext4")


def test_text_is_a_script_whose_document_is_the_same(program: Program, tmp_path: Path) -> None:
    text = program.run("launch", "web", "--print").out
    document = program.run("launch", "web", "--print", "--json").document
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    _, _, rest = text.partition("<<'END'\n")
    assert json.loads(rest.partition("\nEND\n")[0]) == document["firecracker"]
    assert shlex.join(document["qemu"]) in text
    assert "# Firecracker, and Cloud Hypervisor before version 39, boot an ELF vmlinux" in text


def test_an_elf_kernel_needs_no_warning(program: Program) -> None:
    (program.root / "vmlinuz").write_bytes(elf())
    assert program.run(program.root / "banger.toml").code == 0
    warnings = program.run("launch", "web", "--print", "--json").document["warnings"]
    assert not [warning for warning in warnings if "Firecracker" in warning]


def test_qemu_gets_a_vsock_where_the_host_has_one(program: Program) -> None:
    document = program.run("launch", "web", "--print", "--json").document
    there = Path("/dev/vhost-vsock").exists()
    assert any("vhost-vsock-pci" in word for word in document["qemu"]) is there
    assert any("modprobe vhost_vsock" in warning for warning in document["warnings"]) is not there
    assert document["firecracker"]["vsock"]["guest_cid"] == 3
    assert any(word.startswith("cid=3,socket=") for word in document["cloud_hypervisor"])


def test_what_cannot_be_launched_says_why(program: Program) -> None:
    missing = program.run("launch", "wab", "--print")
    assert missing.code == 1
    assert "built here: bare, web" in missing.err
    bare = program.run("launch", "bare", "--print")
    assert bare.code == 1
    assert "has no kernel" in bare.err
    assert "kernel-ref" in bare.err
    assert program.run("launch", "web").code == 64
