"""The table: every case of rows 1 to 53 by its id."""

from __future__ import annotations

from hostile import merging, streams, types
from hostile.case import Case

CASES: dict[str, Case] = {}
for _case in (*merging.CASES, *types.CASES, *streams.CASES):
    if _case.id in CASES:
        raise ValueError(f"two cases are called {_case.id}")
    CASES[_case.id] = _case

REJECTED = {
    name: case for name, case in CASES.items() if case.rejects or case.code != "image-invalid"
}
ACCEPTED = {name: case for name, case in CASES.items() if name not in REJECTED}
