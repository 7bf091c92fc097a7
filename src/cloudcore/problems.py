"""Errors over HTTP: what each of cloudcore's is in a status, and as a problem document of RFC 9457. Pure.

::

    @app.exception_handler(CloudcoreError)
    def refused(request, error):
        problem = problem_of(error)
        return JSONResponse(problem.document(), problem.status, problem.headers(), media_type=MEDIA_TYPE)
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PolicyDenied,
    Refused,
    Transient,
)

__all__ = ["MEDIA_TYPE", "Problem", "problem_of"]

MEDIA_TYPE = "application/problem+json"

_KINDS: tuple[tuple[type[CloudcoreError], int, str], ...] = (
    (PolicyDenied, 403, "Not allowed"),
    (NotFound, 404, "Not found"),
    (OutcomeUnknown, 503, "Outcome unknown: repeat with the same operation id"),
    (Transient, 503, "Try again"),
    (InvalidArgument, 400, "Wrong request"),
    (Refused, 409, "Refused"),
    (Conflict, 409, "Conflict"),
)
"""The first that fits."""
_NO_CALLERS_BUSINESS = "something failed that is not the fault of the caller"


@attrs.frozen(kw_only=True)
class Problem:
    """What an API says of an error.

    Attributes:
        status: Of HTTP.
        title: The same for all errors of a kind.
        detail: The error's own words; of one that is no caller's business, that something failed.
        error: The name of its class.
        retry_after: Seconds after which a repeat may succeed, where the error knows.
    """

    status: int
    title: str
    detail: str
    error: str
    retry_after: float | None = None

    def document(self) -> dict[str, Any]:
        """As JSON; ``error`` is cloudcore's extension."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "error": self.error,
        }

    def headers(self) -> dict[str, str]:
        """What goes along."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def problem_of(error: CloudcoreError) -> Problem:
    """The problem that a caller is told of: 4xx for the caller's own, 503 to come again, 500 for all else.

    A 500 does not give the error's words, which may name databases and hosts: log the error itself.
    """
    name, after = type(error).__name__, getattr(error, "retry_after", None)
    for kind, status, title in _KINDS:
        if isinstance(error, kind):
            return Problem(status=status, title=title, detail=str(error), error=name, retry_after=after)
    return Problem(status=500, title="Failed", detail=_NO_CALLERS_BUSINESS, error=name)
