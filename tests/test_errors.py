"""The tree of errors keeps its promises: one root, facts as attributes, picklable, drawn completely."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re
import threading

import pytest

from cloudcore import errors

LEAVES = [getattr(errors, name) for name in errors.__all__]


def test_every_error_is_exported_and_drawn() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    drawn = re.findall(r"[├└]── (\w+(?:, \w+)*)", errors.__doc__ or "")
    names = {name.strip() for line in drawn for name in line.split(",")} | {"CloudcoreError"}
    assert defined == set(errors.__all__)
    assert defined == names


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_facts_survive_pickling_and_default_to_none(leaf: type[errors.CloudcoreError]) -> None:
    facts = {name: f"value of {name}" for name in leaf._facts}
    copy = pickle.loads(pickle.dumps(leaf("what failed", **facts)))
    assert type(copy) is leaf
    assert str(copy) == "what failed"
    assert vars(copy) == facts
    assert all(getattr(leaf("x"), name) is None for name in facts)


def test_a_fact_that_cannot_be_pickled_arrives_as_its_text() -> None:
    """Whatever callers give: their functions, locks, and values whose own pickling fails."""
    given = [lambda host: host, threading.Lock(), {"deep": [open]}, {"deep": [lambda: 1]}, 2**70, frozenset({"a"})]
    for value in given:
        error = errors.InvalidArgument("no", field="filters", value=value)
        arrived = pickle.loads(pickle.dumps(error))
        assert str(arrived) == "no"
        assert arrived.field == "filters"
        assert arrived.value in (value, repr(value))
    assert pickle.loads(pickle.dumps(errors.InvalidArgument("no", value=given[-1]))).value == given[-1]


def test_a_fact_without_even_a_text_does_not_keep_its_error_from_arriving() -> None:
    """A bare ValueError would arrive in its place."""

    class Mute:
        def __reduce__(self) -> str:
            raise ValueError("no pickling")

        def __repr__(self) -> str:
            raise ValueError("no text")

    arrived = pickle.loads(pickle.dumps(errors.InvalidArgument("no", field="filters", value=Mute())))
    assert (str(arrived), arrived.field, arrived.value) == ("no", "filters", "<Mute>")


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_error_says_its_cause_and_what_to_do(leaf: type[errors.CloudcoreError]) -> None:
    if leaf is not errors.CloudcoreError:
        cause, *_, cure = inspect.getdoc(leaf).split("\n\n")
        assert cause.rstrip(".")
        assert re.fullmatch(r"What to do: .+\.", cure, re.DOTALL)


def test_an_undeclared_fact_is_refused() -> None:
    with pytest.raises(TypeError, match="ProviderNotFound has no fact providr"):
        errors.ProviderNotFound("no such provider", providr="cn1")


def test_as_fields_leaves_out_what_does_not_apply() -> None:
    error = errors.CapacityExceeded("full", resource_class="VCPU", asked=4)
    assert error.as_fields() == {"error": "CapacityExceeded", "message": "full", "resource_class": "VCPU", "asked": 4}


@pytest.mark.parametrize(
    ("leaf", "builtin"),
    [
        ("InvalidQuery", "ValueError"),
        ("CellNotFound", "LookupError"),
        ("GenerationConflict", "RuntimeError"),
        ("PolicyDenied", "PermissionError"),
        ("DeadlineExceeded", "TimeoutError"),
        ("DatabaseUnavailable", "ConnectionError"),
        ("MissingExtra", "ImportError"),
        ("InvariantViolated", "AssertionError"),
    ],
)
def test_leaves_are_also_the_fitting_builtin(leaf: str, builtin: str) -> None:
    assert issubclass(getattr(errors, leaf), getattr(builtins, builtin))


def test_transient_and_permanent_are_told_apart_by_class() -> None:
    transient = {leaf.__name__ for leaf in LEAVES if issubclass(leaf, errors.Transient)}
    assert {"DatabaseBusy", "CellUnavailable", "VolumeBusy", "DeadlineExceeded"} < transient
    assert not transient & {"InvalidQuery", "CapacityExceeded", "OutcomeUnknown", "DatabaseError"}
