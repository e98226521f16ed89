"""docs/images.md names every case of the table, and nothing that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from hostile.pitfalls import CASES as PITFALLS
from hostile.table import CASES

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs/images.md").read_text()
ROWS = {
    int(row.split("|")[1]): re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition("|")[2])
    for row in DOCUMENT.splitlines()
    if re.match(r"\| [0-9]+ \|", row)
}


def functions(path: Path) -> set[str]:
    """The tests in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_the_rows_are_all_there() -> None:
    assert list(ROWS) == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 53


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist(row: int) -> None:
    assert ROWS[row]
    for name in ROWS[row]:
        if name not in CASES:
            path, _, function = name.partition("::")
            assert function.partition("[")[0] in functions(ROOT / path), name


@pytest.mark.parametrize("name", CASES)
def test_a_case_stands_in_its_rows(name: str) -> None:
    assert CASES[name].rows
    for row in CASES[name].rows:
        assert name in ROWS[row]


def test_the_pitfalls_are_named() -> None:
    assert all(f"`{case.id}`" in DOCUMENT for case in PITFALLS)
