"""Trying again what failed for a reason that may go away: a store that answers 500, or is full, for a while."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from datas3_ray.errors import Datas3Error, engine_reason

T = TypeVar("T")

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts."""
_NEVER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_HOPELESS = re.compile(
    r"permission ?denied|read-only file system|access ?denied|forbidden|unauthorized|invalidaccesskeyid|"
    r"signaturedoesnotmatch|no such bucket|nosuchbucket|not found|already exists",
    re.IGNORECASE,
)
_PASSING = re.compile(
    r"no space left|disk quota|os error 28|time[d ]?-?out|timeout|connect|reset by peer|broken pipe|temporarily|"
    r"slow ?down|throttl|internal ?(server )?error|service ?unavailable|bad gateway|too many requests|"
    r"\b(429|500|502|503|504)\b|error sending request|dns error|incomplete|retryable commit conflict|preempted",
    re.IGNORECASE,
)


def is_passing(error: BaseException) -> bool:
    """Whether an error may go away by itself.

    >>> is_passing(OSError("Generic S3 error: 503 Service Unavailable")), is_passing(PermissionError(13, "no"))
    (True, False)
    """
    if isinstance(error, OSError) and error.errno in _NEVER:
        return False
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    text = str(error)
    return bool(_PASSING.search(text)) and not _HOPELESS.search(text)


def with_backoff(call: Callable[[], T], what: str, *, after: str = "") -> T:
    """``call()``, tried again with growing pauses while its error is one that may go away.

    Raises
    ------
    Datas3Error
        When it fails for good: ``what`` failed, how often it was tried, the cause, and what to do.
    """
    for attempt, delay in enumerate((*DELAYS, None), start=1):
        try:
            return call()
        except Datas3Error:
            raise
        except Exception as error:  # the engines raise OSError, ValueError and RuntimeError for the same trouble
            if delay is None or not is_passing(error):
                raise Datas3Error(failure(what, error, attempt, after)) from error
        time.sleep(delay)
    raise AssertionError("unreachable")


def short(error: BaseException) -> str:
    """The error's own message on one line, without the engine's internals, at most 300 characters."""
    text = engine_reason(error).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."


def failure(what: str, error: Exception, attempts: int = 1, after: str = "") -> str:
    """That ``what`` failed: how often it was tried, the cause, and what to do."""
    text = str(error).lower()
    if "no space left" in text or "os error 28" in text:
        advice = "free some space and run the same command again"
    elif "read-only" in text or "permission denied" in text or "os error 13" in text or "os error 30" in text:
        advice = "make it writable for this user, or name another lake"
    elif "denied" in text or "forbidden" in text or "accesskey" in text or "signature" in text:
        advice = "check the credentials in the storage options or the environment"
    elif "resolve region" in text:
        advice = "name the store's region: aws_region in the storage options, or AWS_REGION in the environment"
    elif is_passing(error):
        advice = "run the same command again when the store answers"
    else:
        advice = ""
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    ends = "; ".join(part for part in (after, advice) if part)
    return f"{what} failed{tried}: {short(error).rstrip('.')}" + (f"; {ends}." if ends else ".")
