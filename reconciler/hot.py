"""The interpreter, set for loops that make hundreds of thousands of objects beside busy threads.

The builders run such loops in `hot_loop()`, and a whole build in `a_build()`. The settings hold for
the whole process; several images may be built at a time, so the last one to leave puts them back.
A process starts without the search for garbage, and work that may last begins with a seldom one.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH_SECONDS = 50e-6
_USUAL_SECONDS = 5e-3
"""What Python starts with."""

_NEW_OBJECTS = 50_000
"""After so many the search begins; Python's own number is 700, and a start makes many that stay."""

_lock = threading.Lock()
_inside: list[None] = []
_builds: list[None] = []


def start_without_garbage() -> None:
    """The process imports now: all that it makes will stay."""
    gc.disable()


def look_for_garbage() -> None:
    """From here on the process looks for garbage now and then, and not in what is there."""
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    gc.enable()


@contextmanager
def a_build() -> Iterator[None]:
    """Let the search for garbage pass over what hot loops in here leave: a tree of an image.

    Looking through it again and again would cost more than a tenth of a build, and find nothing.
    """
    with _lock:
        _builds.append(None)
    try:
        yield
    finally:
        with _lock:
            _builds.pop()
            if not _builds:
                gc.unfreeze()


@contextmanager
def hot_loop() -> Iterator[None]:
    """Run the body without the search for garbage, and with threads that wait less for each other.

    Hundreds of thousands of small objects are made and kept, so looking for garbage only costs. The
    threads that decompress and hash need the interpreter's lock for a moment, again and again, and
    would wait up to 5 ms for it each time.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    with _lock:
        _inside.append(None)
        gc.disable()
        sys.setswitchinterval(_SWITCH_SECONDS)


def _leave() -> None:
    with _lock:
        _inside.pop()
        if not _inside:
            sys.setswitchinterval(_USUAL_SECONDS)
            if _builds:
                gc.freeze()
            gc.enable()
