"""What errors are over HTTP: a status for each, none by accident, and nothing but what an error says."""

from __future__ import annotations

import json

import pytest

from cloudcore import errors
from cloudcore.errors import CloudcoreError, Conflict, InvalidArgument, NotFound, Refused, Transient
from cloudcore.problems import problem_of


def leaves(kind: type[CloudcoreError] = CloudcoreError) -> list[type[CloudcoreError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in leaves(child))]


@pytest.mark.parametrize("kind", sorted(set(leaves()), key=lambda each: each.__name__), ids=lambda each: each.__name__)
def test_every_error_has_its_status(kind: type[CloudcoreError]) -> None:
    problem = problem_of(kind("some words"))
    told = json.loads(json.dumps(problem.document()))
    assert (told["status"], told["error"]) == (problem.status, kind.__name__)
    assert (told["detail"] == "some words") == (problem.status != 500)
    if issubclass(kind, errors.PolicyDenied):
        assert problem.status == 403
    elif issubclass(kind, NotFound):
        assert problem.status == 404
    elif issubclass(kind, Transient | errors.OutcomeUnknown):
        assert problem.status == 503
    elif issubclass(kind, InvalidArgument):
        assert problem.status == 400
    else:
        assert problem.status == (409 if issubclass(kind, Refused | Conflict) else 500)


def test_of_what_is_no_callers_business_nothing_is_told() -> None:
    """Neither where the database is nor what it said."""
    told = problem_of(errors.DatabaseError("postgresql://cloud@10.0.0.7/cloud: disk full", database="cloud")).document()
    assert told["status"] == 500
    assert not any(word in json.dumps(told) for word in ("postgresql", "10.0.0.7", "disk", "cloud"))


def test_whoever_may_come_again_is_told_when() -> None:
    assert problem_of(errors.DatabaseBusy("busy", retry_after=0.2)).headers() == {"retry-after": "1"}
    assert problem_of(errors.DatabaseBusy("busy", retry_after=2.5)).headers() == {"retry-after": "3"}
    assert problem_of(errors.DatabaseBusy("busy")).headers() == {}
