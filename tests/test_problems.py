"""What errors are over HTTP: a status for each, none by accident, and nothing but what an error says."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from cloudcore import errors
from cloudcore.errors import CloudcoreError, Conflict, InvalidArgument, NotFound, Refused, Transient
from cloudcore.problems import problem_of


def leaves(kind: type[CloudcoreError] = CloudcoreError) -> list[type[CloudcoreError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in leaves(child))]


OF_SERVERS = (errors.Closed, errors.OutcomeUnknown, *sorted(set(leaves(Transient)), key=lambda each: each.__name__))
"""Whose words are of the servers behind the one that was asked."""


@pytest.mark.parametrize("kind", sorted(set(leaves()), key=lambda each: each.__name__), ids=lambda each: each.__name__)
def test_every_error_has_its_status(kind: type[CloudcoreError]) -> None:
    problem = problem_of(kind("some words"))
    told = json.loads(json.dumps(problem.document()))
    assert (told["status"], told["error"]) == (problem.status, kind.__name__)
    assert told["title"] == HTTPStatus(problem.status).phrase  # of RFC 9457, where the type is about:blank
    assert (told["detail"] == "some words") == (problem.status != 500 and not issubclass(kind, OF_SERVERS))
    if issubclass(kind, errors.PolicyDenied):
        assert problem.status == 403
    elif issubclass(kind, NotFound):
        assert problem.status == 404
    elif issubclass(kind, Transient | errors.OutcomeUnknown | errors.Closed):
        assert problem.status == 503
    elif issubclass(kind, InvalidArgument):
        assert problem.status == 400
    else:
        assert problem.status == (409 if issubclass(kind, Refused | Conflict) else 500)


@pytest.mark.parametrize("kind", [errors.DatabaseError, *OF_SERVERS], ids=lambda each: each.__name__)
def test_of_what_is_no_callers_business_nothing_is_told(kind: type[CloudcoreError]) -> None:
    """Neither where a server is nor what it said."""
    told = problem_of(kind("postgresql://nova@10.0.0.7/cell7: disk full")).document()
    assert told["status"] == (500 if kind is errors.DatabaseError else 503)
    assert not any(word in json.dumps(told) for word in ("postgresql", "10.0.0.7", "disk", "nova", "cell7"))


def test_whoever_may_come_again_is_told_when() -> None:
    assert problem_of(errors.DatabaseBusy("busy", retry_after=0.2)).headers() == {"retry-after": "1"}
    assert problem_of(errors.DatabaseBusy("busy", retry_after=2.5)).headers() == {"retry-after": "3"}
    assert problem_of(errors.DatabaseBusy("busy")).headers() == {}
