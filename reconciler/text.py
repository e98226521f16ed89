"""What others wrote, made fit to be shown."""

from __future__ import annotations


def printable(raw: bytes | str, limit: int = 200) -> str:
    """Bytes from an image or a registry as one safe line: escaped, and cut at `limit` characters.

    >>> printable(b"a\\nb\\x1b[31m")
    'a\\\\nb\\\\x1b[31m'
    """
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    if text.isprintable() and len(text) <= limit:
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
