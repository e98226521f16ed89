"""The rooms and who may enter: layers, owners of libraries, purity, size of modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "reconciler"

# Top to bottom. A module imports only from lines below its own; modules on one line are neighbours
# that may use each other.
LAYERS = """
__main__
cli
verbs.*
options
usage values
daemon
beside
watch notify agenda serve page
page_style
metrics board
render
answers
report progress
reconcile status manual launch
locking
apply asked
observe
pipeline
direct.*
stages.*
room services
notes
prune collection replacing
plan
events
records store
manifest
kernel.*
guest.*
logins
tools ext4.*
config.*
oci.*
removal
processes digests
files hot parallel
sizes durations streams allocator
wishes
model
errors
text
__init__
"""

OWNERS = {
    "subprocess": {"processes"},
    "httpx": {"oci.web", "oci.line"},
    "ctypes": {"allocator", "ext4.libext2fs", "files", "processes"},
    "tomli": {"config.load"},
    "sqlite3": {"records"},
    "watchfiles": {"watch"},
    "isal": {"oci.compression", "digests"},
    "backports": {"oci.compression"},
    "rich": {"render", "progress", "verbs.session"},
    "click": {"cli", "options", "usage", "values"},
    "prometheus_client": {"metrics"},
    "structlog": {"events"},
}

PURE = ["plan", "collection", "model", "errors", "sizes", "oci.reference", "oci.merge"]
PURE += [
    "report",
    "agenda",
    "wishes",
    "prune",
    "answers",
    "page",
    "page_style",
    "locking",
    "replacing",
]
IMPURE = {"os", "io", "time", "random", "logging", "shutil", "tempfile", "subprocess", "socket"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") or "__init__"] = path
    return found


MODULES = modules()


def imports(path: Path, *, typing: bool) -> set[str]:
    """Modules that a file imports; without those for type checking only, unless `typing`."""
    tree = ast.parse(path.read_text())
    hidden = [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    ]
    found = set()
    for node in ast.walk(tree):
        if not typing and node in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def level(name: str) -> int:
    for number, line in enumerate(LAYERS.strip().splitlines()):
        for pattern in line.split():
            if name == pattern or (pattern.endswith(".*") and f"{name}.".startswith(pattern[:-1])):
                return number
    pytest.fail(f"{name} has no place in LAYERS: give it one")


def test_every_line_of_the_layers_is_a_module() -> None:
    for pattern in LAYERS.split():
        prefix = pattern.removesuffix(".*")
        assert any(n == prefix or n.startswith(f"{prefix}.") for n in MODULES), pattern


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downwards(name: str) -> None:
    for imported in imports(MODULES[name], typing=False):
        target = imported.removeprefix("reconciler.")
        if imported.startswith("reconciler.") and target in MODULES:
            assert level(target) >= level(name), f"{name} imports {target}, which stands above it"


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_owner(library: str) -> None:
    users = {
        name
        for name, path in MODULES.items()
        for imported in imports(path, typing=False)
        if imported.split(".")[0] == library
    }
    assert users <= OWNERS[library]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_reach_for_nothing(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports(MODULES[name], typing=False)}
    assert not used & IMPURE


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_why_and_stays_readable(name: str) -> None:
    text = MODULES[name].read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"
        assert not isinstance(node, ast.Assert), f"assert at line {getattr(node, 'lineno', 0)}"
