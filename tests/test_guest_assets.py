"""The assets as lists, and the two scripts run for real in a root and namespaces of their own."""

import configparser
import json
import os
import platform
import posixpath
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.filesystems import directory, file, link, tree_of
from support.guest import SHIPPED

from reconciler.errors import BangerError, Code, HostError, ImageError
from reconciler.ext4.debugfs import Script
from reconciler.guest import assets
from reconciler.guest.assets import Asset, asset_sizes, assets_digest, guest_assets
from reconciler.guest.inits import Init, init_of
from reconciler.model import Descriptor, DesiredImage, ImageSpec, PinnedImage, Platform
from reconciler.oci.entries import Node, Tree

MACHINE = platform.machine()
PLATFORM = Platform("linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(MACHINE, MACHINE))
DIGEST = "sha256:" + "ab" * 32
UNITS = ("banger-vsock-agent", "banger-network", "banger-first-boot")
ROLES = ("network", "first-boot")


def desired(runtime: str = "{}", *, guest: bool = True, port: int = 42070) -> DesiredImage:
    config = Descriptor("application/vnd.oci.image.config.v1+json", DIGEST, 2)
    pinned = PinnedImage(DIGEST, config, (), PLATFORM, runtime)
    spec = ImageSpec("web", "oci:/x", None, guest=guest, platform=PLATFORM)
    return DesiredImage(spec, pinned, None, "sha256:guest", port)


def image_with(*paths: str) -> Tree:
    """An image of empty files, and links where a path has an arrow in it."""
    root: dict[bytes, Node] = {}
    for spelt in paths:
        path, _, target = spelt.partition(" -> ")
        *parents, name = path.encode().split(b"/")
        here = root
        for parent in parents:
            here = here.setdefault(parent, directory()).children
        here[name] = link(target.encode()) if target else file(1)
    return tree_of(root)


SYSTEMD = image_with("usr/lib/systemd/systemd", "lib -> usr/lib", "usr/lib/modules/6.1.0/x.ko")
BARE = image_with("bin/app")
OPENRC = image_with("sbin/init -> /bin/busybox", "bin/busybox", "sbin/openrc", "etc/inittab")
SYSVINIT = image_with("sbin/init", "etc/inittab", "etc/init.d/rc")


TREES = (SYSTEMD, BARE, OPENRC, SYSVINIT)


def by_path(image: DesiredImage, tree: Tree = SYSTEMD) -> dict[str, Asset]:
    return {asset.path: asset for asset in guest_assets(image, tree)}


def test_the_table() -> None:
    found = by_path(desired())
    library, system = "/usr/local/lib/banger", "/etc/systemd/system"
    wants = f"{system}/multi-user.target.wants"
    assert {path: oct(asset.mode) for path, asset in found.items()} == {
        f"{library}/banger-guest": "0o755",
        **{f"{library}/{name}": "0o777" for name in ("network", "first-boot")},
        **{f"{system}/{name}.service": "0o644" for name in UNITS},
        **{f"{wants}/{name}.service": "0o777" for name in UNITS},
        "/etc/modules-load.d/banger-vsock.conf": "0o644",
        "/etc/banger/image.json": "0o644",
        "/etc/banger/vsock-port": "0o644",
        "/var/lib/banger/first-boot-pending": "0o644",
    }
    for name in UNITS:
        assert found[f"{wants}/{name}.service"].target == f"{system}/{name}.service"
        assert found[f"{wants}/{name}.service"].content is None
    for name in ROLES:
        assert found[f"{library}/{name}"].target == f"{library}/banger-guest"
    modules = found["/etc/modules-load.d/banger-vsock.conf"].content or b""
    assert modules.split(b"\n")[1:3] == [b"vsock", b"vmw_vsock_virtio_transport"]
    assert (found[f"{library}/banger-guest"].content or b"").startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("tree", "init"),
    [
        (SYSTEMD, Init.SYSTEMD),
        (image_with("lib/systemd/systemd", "sbin/init -> /lib/systemd/systemd"), Init.SYSTEMD),
        (OPENRC, Init.OPENRC),
        (SYSVINIT, Init.SYSVINIT),
        (BARE, Init.NONE),
        (image_with(), Init.NONE),
        (image_with("sbin/init -> /nowhere"), Init.NONE),
        (image_with("sbin/init -> init"), Init.NONE),
        (image_with("sbin/init -> ../bin/busybox", "bin/busybox", "etc/inittab"), Init.NONE),
        (image_with("sbin -> usr/bin", "usr/bin/init -> busybox", "bin -> usr/bin",
                    "usr/bin/busybox"), Init.NONE),
        (image_with("sbin/init -> /bin/busybox", "bin/busybox", "etc/init.d/rcS"), Init.OTHER),
        (image_with("sbin/init"), Init.OTHER),
    ],
)  # fmt: skip
def test_the_init_is_told_from_the_tree(tree: Tree, init: Init) -> None:
    assert init_of(tree) is init


def test_each_init_starts_ours_in_its_own_way() -> None:
    common = by_path(desired(), image_with("sbin/init")).keys()
    openrc, sysvinit, none = (
        by_path(desired(), tree).keys() - common for tree in (OPENRC, SYSVINIT, BARE)
    )
    assert none == {"/sbin/init"}
    assert "/etc/runlevels/default/banger-vsock-agent" in openrc
    assert "/etc/runlevels/boot/banger-network" in openrc
    assert "/etc/rc2.d/S01banger" in sysvinit
    for tree, paths in ((OPENRC, openrc), (SYSVINIT, sysvinit)):
        found = by_path(desired(), tree)
        for path in paths:
            target = found[path].target
            if target is not None:
                assert posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) in found
            else:
                assert found[path].mode == (0o644 if path.endswith(".tab") else 0o755)
    assert by_path(desired(), BARE)["/sbin/init"].target == "/usr/local/lib/banger/banger-guest"


def test_modules_are_asked_for_only_where_there_can_be_some() -> None:
    path = "/etc/modules-load.d/banger-vsock.conf"
    assert path not in by_path(desired(), BARE)
    module = Asset("/lib/modules/6.1.0/kernel/fs/ext4.ko", 0o644, b"module")
    assert path in {asset.path for asset in guest_assets(desired(), BARE, (module,))}


def test_every_path_and_target_can_stand_in_a_debugfs_script() -> None:
    script = Script()
    for asset in (a for tree in TREES for a in guest_assets(desired(), tree)):
        for name in asset.path.split("/")[1:]:
            script.mkdir(name)
        if asset.target:
            script.symlink("x", asset.target)
    assert script.text()


def test_nothing_when_the_entry_says_so() -> None:
    assert guest_assets(desired(guest=False), BARE) == ()
    assert asset_sizes(desired(guest=False), BARE) == ()


def test_the_sizes_cover_files_links_and_each_directory_once() -> None:
    sizes = asset_sizes(desired(), SYSTEMD)
    files = [len(asset.content or b"") for asset in guest_assets(desired(), SYSTEMD)]
    assert list(sizes[: len(files)]) == files
    assert len(sizes) - len(files) == 14  # /, /usr, /usr/local, ... /var/lib/banger
    assert set(sizes[len(files) :]) == {4096}


def test_the_units_run_what_is_there_and_are_enabled_as_they_say() -> None:
    found = by_path(desired(port=5000))
    for name in UNITS:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string((found[f"/etc/systemd/system/{name}.service"].content or b"").decode())
        assert unit["Service"]["ExecStart"].split()[0] in found
        assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert found["/etc/banger/vsock-port"].content == b"5000\n"
    first = found["/etc/systemd/system/banger-first-boot.service"].content or b""
    assert first.count(b"/var/lib/banger/first-boot-pending\n") == 1


def test_the_images_config_is_kept_and_nothing_else_of_it() -> None:
    runtime = {
        "Env": ["PATH=/bin", "GREETING=höchst \u2028 \"'\n"],
        "Entrypoint": None,
        "Cmd": ["/bin/app", "--serve"],
        "User": "1000:1000",
        "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
        "Labels": {"maintainer": "x"},
        "ExposedPorts": {"80/tcp": {}},
    }
    content = by_path(desired(json.dumps(runtime)))["/etc/banger/image.json"].content or b""
    kept = {k: v for k, v in runtime.items() if v and k not in ("Labels", "ExposedPorts")}
    assert json.loads(content) == {"Digest": DIGEST, **kept}
    assert content.isascii()
    assert content.count(b"\n") == 1


@pytest.mark.parametrize(
    "runtime", ['{"Env":"A=1"}', '{"Cmd":[1]}', '{"User":5}', '{"Entrypoint":{"a":"b"}}']
)
def test_a_config_of_wrong_types_is_the_images_fault(runtime: str) -> None:
    with pytest.raises(ImageError, match="not of its type"):
        guest_assets(desired(runtime), BARE)


def test_the_digest_is_that_of_our_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(assets.__file__).parent, tmp_path / "guest")
    before = assets_digest(PLATFORM)
    monkeypatch.setattr(assets, "_HERE", tmp_path / "guest")
    assert assets_digest(PLATFORM) == before
    for name in ("files/sysvinit", "files/banger-vsock.conf", f"bin/{MACHINE}/banger-guest"):
        changed = tmp_path / "guest" / name
        content = changed.read_bytes()
        changed.write_bytes(content + b"\n")
        assert assets_digest(PLATFORM) != before, name
        changed.write_bytes(content)
    monkeypatch.setattr(assets, "_LIBRARY", "/opt/banger")
    assert assets_digest(PLATFORM) != before


@pytest.mark.parametrize("architecture", ["arm64", "amd64", "riscv64"])
def test_a_missing_binary_says_what_to_do(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_HERE", tmp_path)
    with pytest.raises(HostError) as caught:
        assets_digest(Platform("linux", architecture))
    error: BangerError = caught.value
    assert (error.code, error.retryable) == (Code.GUEST_UNAVAILABLE, False)
    assert f"linux/{architecture}" in error.brief
    assert "guest = false" in error.resolution
    assert ("BANGER_GUEST_ARCHS=" in error.resolution) == (architecture != "riscv64")
    image = desired()
    pinned = replace(image.pinned, platform=Platform("linux", architecture))
    with pytest.raises(HostError):
        guest_assets(replace(image, pinned=pinned), BARE)


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
@pytest.mark.parametrize("name", ["sysvinit", "openrc-network", "openrc-first-boot"])
def test_the_scripts_are_posix_shell(name: str, shell: str) -> None:
    if shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {shell}")
    script = Path(assets.__file__).parent / "files" / name
    subprocess.run([*shell.split(), "-n", script], check=True)


# The roles, run: a root with the host's /usr, and mounts, network and host name of its own.

STAGE = """
set -e
cd "$1"
mount --make-rprivate /
mkdir -p usr proc sys dev run tmp
for link in bin sbin lib lib64; do ln -sfn usr/$link $link; done
mount --rbind /usr usr
mount --bind /proc proc
mount --rbind /dev dev
mount -t sysfs sysfs sys
mount --bind cmdline proc/cmdline
echo unnamed >/proc/sys/kernel/hostname
ip link add eth0 type veth peer name peer0
for run in $3; do chroot . "/$2" || echo "status $?" >&2; done
ip -j address show dev eth0 >addresses.json
ip -j route >routes.json
cat /proc/sys/kernel/hostname >hostname.now
"""


@dataclass
class Guest:
    """A root in which a role runs."""

    root: Path
    program: Path

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def run(self, script: str, command_line: str = "", *, times: int = 1) -> str:
        """Run it, and return what it said."""
        shutil.copy(self.program, self.root / script)
        self.write("cmdline", f"console=ttyS0 {command_line}\n")
        runs = " ".join(map(str, range(times)))
        done = subprocess.run(
            ["unshare", "-mnu", "sh", "-c", STAGE, "sh", self.root, script, runs],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    @property
    def addresses(self) -> list[str]:
        (device,) = json.loads(self.read("addresses.json"))
        return [
            f"{one['local']}/{one['prefixlen']}"
            for one in device["addr_info"]
            if one["scope"] == "global"
        ]

    @property
    def gateways(self) -> list[str]:
        routes: list[dict[str, Any]] = json.loads(self.read("routes.json"))
        return [route["gateway"] for route in routes if route["dst"] == "default"]


@pytest.fixture(params=["shipped", "sanitized"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 for namespaces")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "var/lib/banger").mkdir(parents=True)
    (root / "var/lib/banger/first-boot-pending").touch()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    if request.param == "shipped":
        return Guest(root, SHIPPED)
    return Guest(root, request.getfixturevalue("sanitized"))


@pytest.mark.parametrize(
    ("command_line", "addresses", "gateways"),
    [
        ("ip=10.1.2.3::10.1.2.1:255.255.255.0::eth0:off", ["10.1.2.3/24"], ["10.1.2.1"]),
        ("ip=10.1.2.3::10.1.2.1:255.255.255.252:web::none", ["10.1.2.3/30"], ["10.1.2.1"]),
        ("ip=10.1.2.3", ["10.1.2.3/8"], []),
        ("ip=172.16.0.2:::", ["172.16.0.2/16"], []),
        ("ip=192.168.1.2:::::eth0", ["192.168.1.2/24"], []),
        ("banger.ip=10.9.0.2/16 banger.gw=10.9.0.1", ["10.9.0.2/16"], ["10.9.0.1"]),
        ("banger.ip=10.9.0.2/16,fd00::2/64", ["10.9.0.2/16", "fd00::2/64"], []),
        ("ip=10.1.2.3:::255.0.0.0 banger.ip=10.9.0.2/16", ["10.9.0.2/16"], []),
        ("", [], []),
        ("ip=dhcp", [], []),
        ("ip=:::::eth0:dhcp", [], []),
        ("ip=10.1.2.3::10.1.2.1:255.255.255.0::eth0:dhcp", [], []),
        ("ip=eth0:dhcp", [], []),
        ("ip=off xip=10.0.0.1 ip.x=10.0.0.1 *", [], []),
    ],
)
def test_network(
    guest: Guest, command_line: str, addresses: list[str], gateways: list[str]
) -> None:
    said = guest.run("network", command_line, times=2)
    assert "status" not in said
    assert (guest.addresses, guest.gateways) == (addresses, gateways)
    assert ("left to the image" in said) == (not addresses)


@pytest.mark.parametrize(
    "command_line",
    [
        "ip=10.1.2.3:::255.0.255.0",
        "ip=10.1.2.3:::banana",
        "ip=10.1.2.3:::255.0.0.0::missing0",
        "banger.ip=$(reboot)",
        "banger.ip=10.0.0.2/99",
        "banger.ip=10.0.0.2/24 banger.gw=;reboot",
        "banger.hostname=a/b",
        "banger.hostname=-rf",
    ],
)
def test_a_wrong_command_line_is_said_and_fails(guest: Guest, command_line: str) -> None:
    said = guest.run("network", command_line)
    assert "banger-network: " in said
    assert said.endswith("status 1\n")


def test_the_host_name_of_either_syntax(guest: Guest) -> None:
    guest.run("network", "ip=10.1.2.3::::web")
    assert guest.read("hostname.now") == "web\n"
    guest.run("network", "ip=10.1.2.3::::web banger.hostname=db.example")
    assert guest.read("hostname.now") == "db.example\n"


DNS = "banger.dns=10.0.0.53,fd00::53"
MARK = "# Written by banger-network from the kernel command line\n"
RESOLV = MARK + "nameserver 10.0.0.53\nnameserver fd00::53\n"


def test_a_useless_resolv_conf_is_repaired(guest: Guest) -> None:
    place = guest.root / "etc/resolv.conf"
    guest.run("network", DNS)
    assert place.read_text() == RESOLV
    place.write_text("")
    guest.run("network", DNS)
    assert place.read_text() == RESOLV
    place.unlink()
    place.symlink_to("/run/nowhere/resolv.conf")
    guest.run("network", DNS)
    assert place.read_text() == RESOLV
    assert not place.is_symlink()
    guest.run("network", "ip=10.1.2.3::::::off:1.1.1.1:9.9.9.9")
    assert place.read_text() == MARK + "nameserver 1.1.1.1\nnameserver 9.9.9.9\n"


def test_a_resolv_conf_is_left_alone_when_it_serves_or_nothing_is_asked(guest: Guest) -> None:
    place = guest.root / "etc/resolv.conf"
    place.write_text("nameserver 192.0.2.1\n")
    guest.run("network", DNS)
    assert place.read_text() == "nameserver 192.0.2.1\n"
    place.write_text("")
    guest.run("network", "banger.ip=10.0.0.2/24")
    assert place.read_text() == ""


def test_first_boot_makes_a_machine_of_its_own(guest: Guest) -> None:
    baked = "0123456789abcdef0123456789abcdef\n"
    guest.write("etc/machine-id", baked)
    guest.write("var/lib/dbus/machine-id", baked)
    guest.write("etc/ssh/ssh_host_ed25519_key", "shared by all clones")
    guest.write("etc/ssh/ssh_host_dsa_key.pub", "shared by all clones")
    guest.write("etc/ssh/sshd_config", "theirs")
    said = guest.run("first-boot", "ip=10.0.0.2::::web")
    assert said.endswith("banger-first-boot: finished\n")
    identity = guest.read("etc/machine-id")
    assert identity != baked
    assert len(bytes.fromhex(identity.strip())) == 16
    assert guest.read("var/lib/dbus/machine-id") == identity
    assert guest.read("etc/hostname") == guest.read("hostname.now") == "web\n"
    assert guest.read("etc/ssh/sshd_config") == "theirs"
    if shutil.which("ssh-keygen"):
        key = guest.root / "etc/ssh/ssh_host_ed25519_key"
        assert "OPENSSH PRIVATE KEY" in key.read_text()
        assert key.stat().st_mode & 0o777 == 0o600
        assert not (guest.root / "etc/ssh/ssh_host_dsa_key.pub").exists()
        assert not (guest.root / "etc/ssh/.banger-new").exists()
    assert list((guest.root / "var/lib/banger").iterdir()) == []


def test_first_boot_runs_once(guest: Guest) -> None:
    guest.run("first-boot")
    identity = guest.read("etc/machine-id")
    assert guest.run("first-boot") == "banger-first-boot: done in an earlier boot\n"
    assert guest.read("etc/machine-id") == identity


def test_first_boot_keeps_an_id_that_systemd_has_just_made(guest: Guest) -> None:
    fresh = "0123456789abcdef0123456789abcdef\n"
    guest.write("etc/machine-id", fresh)
    guest.write("run/systemd/first-boot", "")
    guest.run("first-boot")
    assert guest.read("etc/machine-id") == fresh


def test_first_boot_names_only_what_has_no_name(guest: Guest) -> None:
    guest.write("etc/hostname", "theirs\n")
    guest.run("first-boot")
    assert guest.read("etc/hostname") == "theirs\n"
    guest.write("var/lib/banger/first-boot-pending", "")
    (guest.root / "etc/hostname").unlink()
    guest.run("first-boot")
    assert guest.read("etc/hostname") == f"guest-{guest.read('etc/machine-id')[:8]}\n"


def test_own_steps_run_in_order_and_a_failed_one_is_tried_again(guest: Guest) -> None:
    steps = "etc/banger/first-boot.d"
    for number in (10, 20, 30):
        body = f"#!/bin/sh\necho {number} >>/order\n"
        guest.write(f"{steps}/{number}-step", body, 0o755)
    guest.write(f"{steps}/20-step", "#!/bin/sh\necho 20 >>/order; test -e /ready\n", 0o755)
    guest.write(f"{steps}/15-notes", "not executable\n")
    said = guest.run("first-boot")
    assert "this step failed: own-20-step\n" in said
    assert said.endswith("status 1\n")
    assert guest.read("order").split() == ["10", "20"]
    identity = guest.read("etc/machine-id")
    guest.write("ready", "")
    said = guest.run("first-boot")
    assert said.endswith("banger-first-boot: finished\n")
    assert "status" not in said
    assert guest.read("order").split() == ["10", "20", "20", "30"]
    assert guest.read("etc/machine-id") == identity


RUNTIME = '{"Entrypoint":["/app"],"StopSignal":"SIGQUIT"}'


def asking(runtime: str = RUNTIME) -> DesiredImage:
    image = desired(runtime)
    return replace(image, spec=replace(image.spec, run_entrypoint=True))


def test_the_images_program_runs_under_another_init_only_when_asked_for() -> None:
    path = "/etc/systemd/system/banger-entrypoint.service"
    assert path not in by_path(desired(RUNTIME), SYSTEMD)
    found = by_path(asking(), SYSTEMD)
    assert b"KillSignal=SIGQUIT\n" in (found[path].content or b"")
    assert found[f"{path.replace('system/b', 'system/multi-user.target.wants/b')}"].target == path
    openrc = by_path(asking(), OPENRC)["/etc/init.d/banger-entrypoint"].content or b""
    assert b'retry="SIGQUIT/10/KILL/5"' in openrc
    assert by_path(asking(), BARE).keys() == by_path(desired(RUNTIME), BARE).keys()
    assert asking().keys.guest != desired(RUNTIME).keys.guest


@pytest.mark.parametrize(
    "signal", ["", "SIGTERM\\nExecStop=/bin/x", "SIG TERM", "-9", "15", "99", "$(x)"]
)
def test_a_stop_signal_that_is_none_stays_out_of_the_unit(signal: str) -> None:
    runtime = f'{{"Cmd":["/app"],"StopSignal":"{signal}"}}'
    path = "/etc/systemd/system/banger-entrypoint.service"
    unit = by_path(asking(runtime), SYSTEMD)[path].content or b""
    assert b"KillSignal=SIGTERM\n" in unit
    assert b"ExecStop" not in unit


@pytest.mark.parametrize(
    ("runtime", "tree", "words"),
    [("{}", "SYSTEMD", "neither Entrypoint nor Cmd"), (RUNTIME, "SYSVINIT", "needs systemd")],
)
def test_what_cannot_run_is_said(runtime: str, tree: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        guest_assets(asking(runtime), globals()[tree])
