"""The guest binary, as it ships and under sanitizers."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import reconciler.guest

PACKAGE = Path(reconciler.guest.__file__).parent
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
SHIPPED = PACKAGE / "bin" / MACHINE / "banger-guest"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes"]


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, compiled by the host's gcc to stop at the first bad access or overflow."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine: contrib/install-packages test installs it")
    made = tmp_path_factory.mktemp("sanitized") / "banger-guest"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    sources = sorted((PACKAGE / "src").glob("*.c"))
    flags = ["-std=c11", "-D_GNU_SOURCE", *WARNINGS, *checks]
    subprocess.run(["gcc", *flags, *sources, "-o", made], check=True)
    return made
