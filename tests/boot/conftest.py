"""One program for all boots of a test process: the kernel is downloaded once."""

from __future__ import annotations

import pytest
from support.machine import require_qemu
from support.program import Program


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    require_qemu()
    return Program(tmp_path_factory.mktemp("boot"))
