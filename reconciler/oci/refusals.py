"""What an HTTP status other than success means: whose fault, whether to try again, in whose words.

Pure. The error body is that of the distribution specification ("Error Codes").
"""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.errors import Code, ImageError, RemoteError
from reconciler.oci.documents import parse_json
from reconciler.oci.retry import parse_retry_after
from reconciler.text import printable

LOGIN_HINT = (
    "Check the name, and log in with `docker login {host}`, `podman login {host}` or "
    "`skopeo login {host}` as the user that runs banger-reconcile."
)


def refusal(
    what: str, *, missing: str, host: str, status: int, body: bytes, headers: Mapping[str, str]
) -> RemoteError:
    """The error for one answer; the words in `body` are quoted, escaped.

    `what` was asked for, and `missing` says what a 404 means ("no such tag").
    """
    words = _words(body) or f"status {status}"
    if status == 404:
        brief = f"{what}: {missing}: {host} says {words}"
        return RemoteError(brief, code=Code.NOT_FOUND, retryable=False)
    if status in (401, 403):
        return RemoteError(
            f"{what}: {host} refuses: {words}",
            code=Code.UNAUTHORIZED,
            retryable=False,
            resolution=LOGIN_HINT.format(host=host),
        )
    if status in (408, 429) or status >= 500:
        return RemoteError(
            f"{what}: {host} is not available: {words}",
            retry_after=parse_retry_after(headers.get("retry-after")),
        )
    brief = f"{what}: {host} answers with status {status}: {words}"
    return RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False)


def _words(body: bytes) -> str:
    """`CODE: message` out of an error document, or nothing."""
    try:
        first = parse_json(body, "error")["errors"][0]
        parts = [first.get("code"), first.get("message")]
    except (ImageError, LookupError, TypeError, AttributeError):
        return ""
    return printable(": ".join(part for part in parts if isinstance(part, str) and part))
