"""The build hook's cheap parts; what it makes is tested by test_guest_binary."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("hatchling", reason="the build backend is not installed here")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A guest folder whose source does not compile."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.c").write_text("int main(void) { return oops; }\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "machine", "wanted"),
    [
        (None, "x86_64", ("x86_64",)),
        (None, "aarch64", ("aarch64",)),
        (None, "AMD64", ("x86_64",)),
        ("", "arm64", ("aarch64",)),
        ("all", "riscv64", ("aarch64", "x86_64")),
        ("x86_64,aarch64", "x86_64", ("aarch64", "x86_64")),
        (" amd64  arm64 amd64 ", "x86_64", ("aarch64", "x86_64")),
        ("aarch64", "x86_64", ("aarch64",)),
    ],
)
def test_architectures(
    hook: ModuleType, text: str | None, machine: str, wanted: tuple[str, ...]
) -> None:
    environment = {} if text is None else {"BANGER_GUEST_ARCHS": text}
    assert hook.wanted_architectures(environment, machine) == wanted


@pytest.mark.parametrize("environment", [{}, {"BANGER_GUEST_ARCHS": "x86_64,mips"}])
def test_an_unknown_architecture_says_what_to_set(
    hook: ModuleType, environment: Mapping[str, str]
) -> None:
    with pytest.raises(hook.BuildError, match="set BANGER_GUEST_ARCHS"):
        hook.wanted_architectures(environment, "riscv64")


def test_the_tag_names_linux_and_no_python_version(hook: ModuleType) -> None:
    assert hook.wheel_tag(("x86_64",)) == "py3-none-manylinux2014_x86_64.musllinux_1_1_x86_64"
    assert hook.wheel_tag(("aarch64", "x86_64")).count(".") == 3


def test_a_binary_counts_until_source_recipe_or_binary_change(
    hook: ModuleType, guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, stamp = hook.outputs(guest, "x86_64")
    binary.parent.mkdir(parents=True)
    binary.write_bytes(b"made")
    assert not hook.is_current(guest, "x86_64")
    stamp.write_text(hook.stamp_text(guest, "x86_64"))
    assert hook.is_current(guest, "x86_64")
    assert not hook.is_current(guest, "aarch64")
    hook.build(guest, "x86_64")  # must not compile: the source is broken
    binary.write_bytes(b"mad")
    assert not hook.is_current(guest, "x86_64")
    binary.write_bytes(b"made")
    monkeypatch.setattr(hook, "FLAGS", (*hook.FLAGS, "-O0"))
    assert not hook.is_current(guest, "x86_64")
    monkeypatch.undo()
    (guest / "src" / "new.h").write_text("")
    assert not hook.is_current(guest, "x86_64")


def test_no_source_is_a_clear_error(hook: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(hook.BuildError, match="no C source"):
        hook.build(tmp_path, "x86_64")


def test_a_failed_compile_leaves_nothing_and_shows_what_the_compiler_said(
    hook: ModuleType, guest: Path
) -> None:
    with pytest.raises(hook.BuildError, match=r"the compiler failed for x86_64") as caught:
        hook.build(guest, "x86_64")
    assert "oops" in str(caught.value) or "ziglang" in str(caught.value)
    assert list((guest / "bin" / "x86_64").iterdir()) == []


def test_an_unwritable_tree_is_a_clear_error(hook: ModuleType, guest: Path) -> None:
    (guest / "bin").write_text("a file in the way")
    with pytest.raises(hook.BuildError, match="bin"):
        hook.build(guest, "x86_64")


def test_the_compiler_cache_is_somewhere_writable(hook: ModuleType, tmp_path: Path) -> None:
    home = tmp_path / "home"
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    cache = hook.global_cache
    assert cache({"HOME": str(home)}) == home / ".cache" / "zig"
    assert cache({"HOME": str(home), "XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "zig"
    assert cache({"ZIG_GLOBAL_CACHE_DIR": "/somewhere"}) == Path("/somewhere")
    for environment in ({}, {"HOME": ""}, {"HOME": "relative"}, {"HOME": str(blocked)}):
        assert cache(environment) is None


def test_what_lies_in_the_tree_is_up_to_date(hook: ModuleType) -> None:
    """A stale binary here would mean that the other tests test another source."""
    guest = ROOT / "reconciler" / "guest"
    built = [path.name for path in (guest / "bin").iterdir()]
    assert built
    assert all(hook.is_current(guest, architecture) for architecture in built)
