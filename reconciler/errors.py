"""The few ways in which work fails: whose fault it is, whether to try again, what to do.

Every room raises these and nothing else on purpose; `cli` alone turns them into words and exit
codes. A class says whose fault it is, `code` is the stable word that JSON, logs and tests use,
`retryable` decides between backoff and Stalled, `resolution` tells the operator what to do.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Stable error codes: the `error.code` of JSON and the `error_code` of log events."""

    USAGE = "usage"
    CONFIG_INVALID = "config-invalid"
    LOCK_STALE = "lock-stale"
    REFERENCE_INVALID = "reference-invalid"
    NOT_FOUND = "not-found"
    UNAUTHORIZED = "unauthorized"
    REGISTRY_UNAVAILABLE = "registry-unavailable"
    REGISTRY_INVALID = "registry-invalid"
    OFFLINE = "offline"
    DIGEST_MISMATCH = "digest-mismatch"
    IMAGE_INVALID = "image-invalid"
    LIMIT_EXCEEDED = "limit-exceeded"
    SIZE_TOO_SMALL = "size-too-small"
    KERNEL_NOT_FOUND = "kernel-not-found"
    KERNEL_INVALID = "kernel-invalid"
    GUEST_UNAVAILABLE = "guest-unavailable"
    TOOL_MISSING = "tool-missing"
    TOOL_TOO_OLD = "tool-too-old"
    TOOL_FAILED = "tool-failed"
    DISK_FULL = "disk-full"
    HOST_IO = "host-io"
    NOT_PERMITTED = "not-permitted"
    STATE_INVALID = "state-invalid"
    BUSY = "busy"
    INTERRUPTED = "interrupted"
    TIMEOUT = "timeout"
    PRUNE_BLOCKED = "prune-blocked"
    INTERNAL = "internal"


REPORT = "This is a bug of banger-reconcile; please report it with the log."
"""The advice of an INTERNAL error."""


class BangerError(Exception):
    """A failure with a culprit. Raise one of the subclasses.

    brief: one line, already safe to print (hostile bytes escaped by `text.printable`).
    resolution: what the reader can do, as an imperative sentence; may be empty.
    retryable: True when the same request may succeed later without a change of configuration.
    retry_after: seconds that the other side asked for, when it did.
    """

    default_code = Code.INTERNAL
    default_retryable = False

    def __init__(
        self,
        brief: str,
        *,
        code: Code | None = None,
        resolution: str = "",
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(brief)
        self.brief = brief
        self.code = code or self.default_code
        self.resolution = resolution
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after = retry_after


class ConfigError(BangerError):
    """banger.toml cannot be read or is wrong: the operator's to mend. Carries all problems."""

    default_code = Code.CONFIG_INVALID

    def __init__(self, brief: str, problems: tuple[str, ...] = (), *, resolution: str = "") -> None:
        super().__init__(brief, resolution=resolution)
        self.problems = problems


class StaleLock(ConfigError):
    """`--locked`, and banger.lock is missing or fits the configuration no longer."""

    default_code = Code.LOCK_STALE


class ImageError(BangerError):
    """The image is at fault, or cannot be had as asked: permanent until the entry changes."""

    default_code = Code.IMAGE_INVALID


class RemoteError(BangerError):
    """A registry or a download is at fault; `retryable` tells a 5xx from a 401 or 404."""

    default_code = Code.REGISTRY_UNAVAILABLE
    default_retryable = True


class HostError(BangerError):
    """This machine is at fault: a missing tool, a full disk, a forbidden path, a broken file."""

    default_code = Code.HOST_IO
    default_retryable = True


class Busy(BangerError):
    """Another writer holds the lock; the message names it."""

    default_code = Code.BUSY
    default_retryable = True
