"""Patience: what a store fails at and may do the next moment is tried again, with growing waits, within a bound.

What passes: an answer of 5xx, 429, 409 or 408, a time limit, a connection refused or broken off, a body cut short, a
name that is not resolved. What does not pass is raised at once: every other failure. The clients' own retries are
turned off where this loop is used: they know no bound in time, some of their waits hear no Ctrl-C, and what they sent
twice they do not tell.

A wait is broken off by KeyboardInterrupt. The time limit of a scan (`cohorts.prepare.within`) does not wait for it:
what was abandoned goes on in the background until the bound.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 120.0  # a gateway that restarts is back by then; no try begins later
FIRST_CONTACT_S = 15.0  # of a store that this process never heard of: its address is more likely wrong than it away
FIRST_WAIT_S = 0.2  # doubled each time; many clients that failed together come back apart, each wait being drawn
LONGEST_WAIT_S = 10.0

# by name and with their base classes: clients are imported only where they are used
_PASSING = {
    "ConnectionError",  # Python's own, and botocore's of the same name: refused, not resolved, no answer in time
    "TimeoutError",
    "gaierror",
    "HTTPClientError",  # botocore: reading timed out, connection closed
    "IncompleteReadError",  # botocore: the body is cut short
    "ResponseParserError",  # botocore: the body of an answer is no XML
    "ClientConnectionError",  # aiohttp
    "error_temp",  # ftplib: try again later
    "EOFError",  # ftplib: the connection was closed
    "ClientPayloadError",  # aiohttp: the body is cut short
    "FSTimeoutError",  # fsspec
}
_LASTING = {"SSLError"}  # botocore's is a ConnectionError: a certificate is not trusted
_PASSING_STATUS = {408, 409, 429}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}  # whatever their status
# how pyarrow names them in the text of an OSError
_PASSING_IN_ARROW = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT)"
    r"|HTTP status (5\d\d|408|409|429)"
)

Value = TypeVar("Value")


class Exhausted(OSError):
    """It was tried as often as patience allows; says how often, and what was said the last time."""


_answered: set[str] = set()
_repeats: Counter[str] = Counter()
_counting = threading.Lock()


def patiently(work: Callable[[], Value], *, store: str) -> Value:
    """What `work`, which can be done twice, returns or raises; tried again where its failure may pass.

    store: whom it asks, as in "s3". Raises Exhausted once patience is at its end.
    """
    began = time.monotonic()
    for tries in itertools.count(1):
        try:
            value = work()
        except Exception as error:
            passing = may_pass(error)
            if not passing or answer_of(error)[1]:  # a store that says it is busy is there
                _answered.add(store)
            if not passing:
                raise
            waited_s = time.monotonic() - began
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.5)
            if waited_s + wait_s > (PATIENCE_S if store in _answered else FIRST_CONTACT_S):
                raise Exhausted(f"{_said(error)} (tried {tries} times in {waited_s:.0f} s)") from error
            with _counting:
                _repeats[store] += 1
            time.sleep(wait_s)
        else:
            _answered.add(store)
            return value
    raise AssertionError("unreachable")


def repeats() -> int:
    """How often anything was tried again in this process so far."""
    return _repeats.total()


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed the next moment."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _LASTING:
        return False
    code, status = answer_of(error)
    if status:
        return (status >= 500 and status != 501) or status in _PASSING_STATUS or code in _PASSING_CODES
    return bool(names & _PASSING) or (isinstance(error, OSError) and bool(_PASSING_IN_ARROW.search(str(error))))


def answer_of(error: BaseException) -> tuple[str, int]:
    """The code of S3 and the HTTP status that a server answered with; "" and 0 where the error is no answer of one."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if isinstance(status := getattr(each, "status", None), int):  # aiohttp's, of a web server
            return "", status
    return "", 0


def _said(error: BaseException) -> str:
    code, status = answer_of(error)
    return f"the store answers {status} {code}".rstrip() if status else str(error) or type(error).__name__
