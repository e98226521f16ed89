"""A tree goes while something else is done; whatever happens to the process that removes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.children import children

from reconciler import removal
from reconciler.files import remove_tree
from reconciler.removal import removing


def make(top: Path) -> Path:
    (top / "a/b").mkdir(parents=True)
    for number in range(300):
        (top / f"a/b/{number}").write_bytes(b"x")
    (top / "link").symlink_to("/etc")
    return top


def test_it_is_gone_at_the_end_and_so_is_the_process(tmp_path: Path) -> None:
    top, before = make(tmp_path / "tree"), children()
    with removing(top):
        pass
    assert not list(tmp_path.iterdir())
    assert children() == before
    assert Path("/etc/passwd").exists()


def test_an_error_of_the_body_ends_it_at_once(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(KeyError), removing(make(tmp_path / "tree")):
        raise KeyError
    assert children() == before
    remove_tree(tmp_path / "tree")
    assert not list(tmp_path.iterdir())


def test_without_a_process_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "can_start", lambda: False)
    with removing(make(tmp_path / "tree")):
        pass
    assert (tmp_path / "tree/a/b/0").exists()


def test_what_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    with removing(tmp_path / "absent"):
        pass
    assert not list(tmp_path.iterdir())
