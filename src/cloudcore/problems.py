"""Errors over HTTP: what each of cloudcore's is in a status, and as a problem document of RFC 9457. Pure.

::

    @app.exception_handler(CloudcoreError)
    def refused(request, error):
        problem = problem_of(error)
        return JSONResponse(problem.document(), problem.status, problem.headers(), media_type=MEDIA_TYPE)
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import attrs

from cloudcore.errors import (
    CellUnavailable,
    Closed,
    CloudcoreError,
    Conflict,
    DatabaseBusy,
    DatabaseUnavailable,
    DeadlineExceeded,
    GuestBusy,
    HypervisorUnavailable,
    InvalidArgument,
    KeyManagerUnavailable,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PolicyDenied,
    Refused,
    Transient,
    VolumeBusy,
    VolumeServiceUnavailable,
)

__all__ = ["MEDIA_TYPE", "Problem", "problem_of"]

MEDIA_TYPE = "application/problem+json"
"""Of a problem document: its ``Content-Type``."""

_STATUSES: tuple[tuple[type[CloudcoreError], int], ...] = (
    (PolicyDenied, 403),
    (NotFound, 404),
    (OutcomeUnknown, 503),
    (Transient, 503),
    (Closed, 503),  # not the caller's doing: the server is being shut down
    (InvalidArgument, 400),
    (Refused, 409),
    (Conflict, 409),
)
"""The first that fits; 500 where none does."""
_OF_THE_SERVERS: tuple[tuple[type[CloudcoreError], str], ...] = (
    (DatabaseUnavailable, "a database does not answer; nothing was done"),
    (DatabaseBusy, "a database has too much to do at the moment; nothing was done"),
    (Overloaded, "the server has too much to do at the moment; nothing was done"),
    (DeadlineExceeded, "it was not done in time, and may still be going on"),
    (VolumeBusy, "another attach or detach of the volume, or of others of its backend, is under way; nothing was done"),
    (GuestBusy, "the guest takes no change at the moment; nothing was done"),
    (CellUnavailable, "a part of the records cannot be reached at the moment"),
    (VolumeServiceUnavailable, "the volume service does not answer"),
    (KeyManagerUnavailable, "the key manager does not answer"),
    (HypervisorUnavailable, "a hypervisor does not answer"),
    (OutcomeUnknown, "the answer was lost: it happened or it did not; repeat it as the same operation"),
    (Closed, "the server is being shut down"),
    (Transient, "a part that is needed does not answer at the moment"),
)
"""What is told of errors whose own words name servers, users and databases. The first that fits."""
_NO_CALLERS_BUSINESS = "something failed that is not the fault of the caller"


@attrs.frozen(kw_only=True)
class Problem:
    """What an API says of an error.

    Attributes:
        status: Of HTTP.
        title: The standard phrase of the status.
        detail: The error's own words, unless those are no caller's business.
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

    The words of a 500, and of a 503 that another server caused, may name databases and hosts. They are not told: log
    the error itself.
    """
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    otherwise = _NO_CALLERS_BUSINESS if status == 500 else str(error)
    return Problem(
        status=status,
        title=HTTPStatus(status).phrase,
        detail=next((told for kind, told in _OF_THE_SERVERS if isinstance(error, kind)), otherwise),
        error=type(error).__name__,
        retry_after=getattr(error, "retry_after", None),
    )
