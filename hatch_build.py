"""Compiles banger-guest into the wheel: hatchling runs this for wheels and editable installs.

The guest binary is C source in the package. The `ziglang` wheel is a whole cross compiler with
musl, so a static binary needs nothing of the build machine. It is asked for only when there is
something to compile. The same source gives the same bytes: they are part of every image's id.

BANGER_GUEST_ARCHS chooses the architectures: `all`, or a list such as `x86_64,aarch64`; by default
the machine's own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ZIGLANG = "ziglang==0.17.1"
"""One exact compiler, because another version makes other bytes."""

ARCHITECTURES = ("aarch64", "x86_64")
ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}

FLAGS = (
    *("-static", "-Os", "-s", "-std=c11", "-D_GNU_SOURCE"),
    *("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes"),
    *("-fstack-protector-strong", "-ffunction-sections", "-fdata-sections"),
    *("-Wl,--gc-sections", "-Wl,--build-id=none"),
)
TIMEOUT = 900
"""Seconds for one architecture. The first compile also builds musl; a loaded machine is slow."""


class BuildError(Exception):
    """The guest binary cannot be built; the message says why and what to do."""


class GuestBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling finds here."""

    def dependencies(self) -> list[str]:
        """The compiler, unless every wanted binary is there already."""
        guest = Path(self.root) / "reconciler" / "guest"
        try:
            wanted = wanted_architectures(os.environ, platform.machine())
        except BuildError:
            return []  # `initialize` reports it
        return [] if all(is_current(guest, arch) for arch in wanted) else [ZIGLANG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the binaries and add them, and them alone, to what goes in."""
        guest = Path(self.root) / "reconciler" / "guest"
        try:
            wanted = wanted_architectures(os.environ, platform.machine())
            for arch in wanted:
                build(guest, arch)
        except BuildError as error:
            self.app.abort(f"banger-guest cannot be built: {error}")
        build_data["artifacts"] += [f"/reconciler/guest/bin/{arch}/banger-guest" for arch in wanted]
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag(wanted)


def wanted_architectures(environment: Mapping[str, str], machine: str) -> tuple[str, ...]:
    """The architectures to build for, sorted. Raises BuildError for one that is not known."""
    text = environment.get("BANGER_GUEST_ARCHS", "").strip()
    if text == "all":
        return ARCHITECTURES
    names = text.replace(",", " ").split() or [machine]
    wanted = sorted({ALIASES.get(name.lower(), name.lower()) for name in names})
    for name in wanted:
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise BuildError(f"unknown architecture '{name}'; set BANGER_GUEST_ARCHS: {known}, all")
    return tuple(wanted)


def wheel_tag(architectures: tuple[str, ...]) -> str:
    """Any Python 3, and the Linux of these architectures: a static binary fits each libc."""
    platforms = [
        f"{libc}_{arch}" for libc in ("manylinux2014", "musllinux_1_1") for arch in architectures
    ]
    return f"py3-none-{'.'.join(sorted(platforms))}"


def build(guest: Path, arch: str) -> None:
    """Make `<guest>/bin/<arch>/banger-guest`, unless it was made from this very source."""
    if is_current(guest, arch):
        return
    binary, stamp = outputs(guest, arch)
    try:
        binary.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=binary.parent) as scratch:
            made = Path(scratch) / "banger-guest"
            compile_guest(guest, arch, made)
            made.chmod(0o755)
            made.replace(binary)
        stamp.write_text(stamp_text(guest, arch))
    except OSError as error:
        raise BuildError(f"{error.strerror}: {error.filename}") from error


def outputs(guest: Path, arch: str) -> tuple[Path, Path]:
    """The binary, and the stamp that says what it was made from."""
    folder = guest / "bin" / arch
    return folder / "banger-guest", folder / "stamp"


def is_current(guest: Path, arch: str) -> bool:
    """Whether the binary is whole and made from the present source by the present recipe."""
    binary, stamp = outputs(guest, arch)
    return binary.is_file() and stamp.is_file() and stamp.read_text() == stamp_text(guest, arch)


def stamp_text(guest: Path, arch: str) -> str:
    """Two lines: a digest of all that goes into the compile, and one of what came out."""
    recipe = hashlib.sha256("\0".join((ZIGLANG, arch, *FLAGS)).encode())
    for path in sorted((guest / "src").glob("*.[ch]")):
        content = path.read_bytes()
        recipe.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    made = hashlib.sha256(outputs(guest, arch)[0].read_bytes())
    return f"{recipe.hexdigest()}\n{made.hexdigest()}\n"


def compile_guest(guest: Path, arch: str, made: Path) -> None:
    """Run the compiler in the source folder, so that no path of this machine enters the binary."""
    source = guest / "src"
    names = sorted(path.name for path in source.glob("*.c"))
    if not names:
        raise BuildError(f"no C source in {source}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl"]
    with compiler_environment() as environment:
        try:
            done = subprocess.run(
                [*command, *FLAGS, *names, "-o", str(made)],
                cwd=source,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"the compiler took more than {TIMEOUT} s for {arch}") from error
    if done.returncode != 0 or not made.is_file():
        output = done.stdout.decode(errors="backslashreplace").strip()
        raise BuildError(f"the compiler failed for {arch} (is {ZIGLANG} installed?):\n{output}")


@contextmanager
def compiler_environment() -> Iterator[dict[str, str]]:
    """The environment for zig: its caches where they can be written, whatever HOME is."""
    with tempfile.TemporaryDirectory(prefix="banger-zig-") as scratch:
        yield {
            **os.environ,
            "ZIG_GLOBAL_CACHE_DIR": str(global_cache(os.environ) or Path(scratch, "global")),
            "ZIG_LOCAL_CACHE_DIR": str(Path(scratch, "local")),
        }


def global_cache(environment: Mapping[str, str]) -> Path | None:
    """Where zig keeps its compiled musl for the next time, None when there is no such place."""
    if chosen := environment.get("ZIG_GLOBAL_CACHE_DIR"):
        return Path(chosen)
    home = environment.get("HOME", "")
    base = environment.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    if not Path(base).is_absolute():
        return None
    cache = Path(base, "zig")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return cache if os.access(cache, os.W_OK) else None
