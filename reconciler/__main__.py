"""`python -m reconciler` is `banger-reconcile`: how the process starts and ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from reconciler.hot import start_without_garbage


def main() -> NoReturn:
    """Run the command line. What would only take everything apart at the end is left out."""
    start_without_garbage()
    from reconciler.cli import main as run  # noqa: PLC0415 - most of what a start costs

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int) and _is_flushed():
            os._exit(end.code)
        raise


def _is_flushed() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # no such stream, or one that takes nothing
        return False
    return True


if __name__ == "__main__":
    main()
