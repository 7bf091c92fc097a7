"""What is of another type than it should be is refused by name, before any cell is asked and before any effect.

Python takes the text "false" for true, and goes through a word letter by letter: an HTTP parameter that is handed on
unread must not list deleted records, nor remove one for good.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cloudcore.errors import CellNotFound, InvalidArgument, InvalidQuery
from cloudcore.listing import Cell, CellRouter, InstanceStore, Query, Sort
from tests.listing.conftest import things

FLAGS = ["false", "", "no", 0, 1, 1.0, [], [True], b"x", object()]
NO_LISTS = [0, 1.5, True, object(), b"ab", {"a": 1}]
URL = "postgresql://somebody:secret-word@host/name"


@pytest.fixture
def cloud(clouds):
    cloud = clouds("sqlite")
    cloud.store.create("cell1", project_id="p", display_name="a")
    return cloud


@pytest.mark.parametrize("wrong", FLAGS)
@pytest.mark.parametrize("field", ["deleted", "hidden", "unknown"])
def test_a_flag_of_a_query_is_true_or_false(field: str, wrong: object) -> None:
    with pytest.raises(InvalidQuery, match=f"{field}: expected True or False") as refused:
        Query(**{field: wrong})
    assert refused.value.field == field


@pytest.mark.parametrize("wrong", FLAGS)
@pytest.mark.parametrize("field", ["descending", "nulls_first"])
def test_a_flag_of_an_order_is_true_or_false(field: str, wrong: object) -> None:
    with pytest.raises(InvalidQuery, match=f"{field}: expected True or False"):
        Sort("display_name", **{field: wrong})


@pytest.mark.parametrize("field", ["hidden", "unknown"])
def test_none_is_no_flag_where_it_has_no_meaning(field: str) -> None:
    with pytest.raises(InvalidQuery, match=field):
        Query(**{field: None})
    assert Query(deleted=None).deleted is None
    assert Sort("a", nulls_first=None).nulls_first is None


@pytest.mark.parametrize("wrong", NO_LISTS)
@pytest.mark.parametrize("field", ["sort", "columns", "tags", "tags_any", "not_tags", "not_tags_any"])
def test_what_is_no_list_is_refused(field: str, wrong: object) -> None:
    with pytest.raises(InvalidQuery, match=f"{field}: expected a list of"):
        Query(**{field: wrong})


@pytest.mark.parametrize("wrong", [("display_name", "desc"), 1, None, ["display_name"], b"display_name"])
@pytest.mark.parametrize("field", ["sort", "columns", "tags", "tags_any", "not_tags", "not_tags_any"])
def test_what_is_wrong_in_a_list_is_refused(field: str, wrong: object) -> None:
    with pytest.raises(InvalidQuery, match=f"{field}: expected a"):
        Query(**{field: ["display_name", wrong]})


@pytest.mark.parametrize("wrong", ["nope", "ALL", "", None, 1, ["rows"], {}])
@pytest.mark.parametrize("field", ["fetching", "require"])
def test_what_is_chosen_of_is_named(field: str, wrong: object) -> None:
    with pytest.raises(InvalidQuery, match=rf"{field}: expected one of \w+, \w+.*, got"):
        Query(**{field: wrong})


@pytest.mark.parametrize("wrong", ["k", 1, None, [("k", "v")], {"k"}])
def test_metadata_are_a_mapping(wrong: object) -> None:
    with pytest.raises(InvalidQuery, match="metadata: expected a mapping"):
        Query(metadata=wrong)


@pytest.mark.parametrize("wrong", [{}, "", 0, False, [], {"tenant": "p"}, "p", [Query()], Query, object()])
def test_a_query_is_a_query(cloud, wrong: Any) -> None:
    """And nothing that is empty is taken for none, which lists everything."""
    for call in (cloud.router.page, cloud.router.stream, cloud.router.count):
        with pytest.raises(InvalidQuery, match="query: expected a Query") as refused:
            call(wrong)
        assert refused.value.field == "query"
    assert len(cloud.router.page(None).records) == 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda router: router.stream(on_progress=1), "on_progress"),
        (lambda router: router.count(by=["vm_state"]), "by"),
        (lambda router: router.count(by=1), "by"),
        (lambda router: router.count(sums=5), "sums"),
        (lambda router: router.count(sums={"vcpus": 1}), "sums"),
        (lambda router: router.count(sums=[["vcpus"]]), "sums"),
        (lambda router: router.scatter("SELECT 1"), "function"),
        (lambda router: router.scatter(len, cells="cell1"), "cells"),
        (lambda router: router.scatter(len, cells=1), "cells"),
        (lambda router: router.scatter(len, deadline="soon"), "deadline"),
        (lambda router: router.scatter(len, deadline=-1), "deadline"),
        (lambda router: router.add_cell(URL), "cell"),
    ],
)
def test_arguments_of_a_routers_calls_are_named(cloud, call: Any, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{field}: |no column") as refused:
        call(cloud.router)
    assert refused.value.field == field
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize("wrong", [["cell1"], {}, 1, None])
def test_no_cell_is_named_by_anything_but_text(cloud, wrong: Any) -> None:
    calls = [
        cloud.router.database,
        cloud.router.remove_cell,
        lambda cell: cloud.router.scatter(len, cells=[cell]),
        cloud.store.create_tables,
        lambda cell: cloud.store.create(cell, project_id="p"),
        lambda cell: cloud.store.move(cloud.router.page().records[0].uuid, cell),
    ]
    for call in calls:
        with pytest.raises(CellNotFound):
            call(wrong)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cells": {"a": URL}}, "cells"),
        ({"cells": [URL]}, "cells"),
        ({"cells": URL}, "cells"),
        ({"cells": 1}, "cells"),
        ({"directory": URL}, "directory"),
        ({"source": "instances"}, "source"),
        ({"source": things}, "source"),
        ({"breaker": 3}, "breaker"),
        ({"hedging": True}, "hedging"),
        ({"clock": 0.0}, "clock"),
        ({"cursor_keys": b"x" * 16}, "cursor_keys"),
        ({"cursor_keys": 1}, "cursor_keys"),
    ],
)
def test_a_router_is_made_of_what_it_says(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{field}: ") as refused:
        CellRouter(**given)
    assert refused.value.field == field
    assert "secret-word" not in f"{refused.value} {vars(refused.value)}"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"database": "no url"}, "url"),
        ({"database": None}, "url"),
        ({"replicas": ["no url"]}, "url"),
        ({"replicas": {URL: 1}}, "replicas"),
        ({"replicas": 1}, "replicas"),
        ({"enabled": "false"}, "enabled"),
        ({"enabled": 0}, "enabled"),
        ({"options": [("echo", True)]}, "options"),
        ({"pooler": ["transaction"]}, "pooler"),
        ({"pooler": "session"}, "pooler"),
        ({"pooler": ""}, "pooler"),
    ],
)
def test_a_cell_is_made_of_what_it_says(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Cell(**{"name": "a", "database": URL, **given})
    assert refused.value.field == field
    assert "secret-word" not in f"{refused.value} {vars(refused.value)}"
    several = "postgresql://somebody:word@one,two:5433/name"
    assert Cell("a", several, replicas=several).replicas == (several,)


def test_nothing_is_removed_for_good_by_a_word(cloud) -> None:
    (record,) = cloud.router.page().records
    for wrong in ("false", "no", 0, None, 1):
        with pytest.raises(InvalidArgument, match="purge: expected True or False"):
            cloud.store.delete(record.uuid, purge=wrong)
    assert cloud.router.get(record.uuid).deleted is False


@pytest.mark.parametrize(
    "values",
    [{"tags": "web"}, {"tags": 1}, {"tags": {"web": 1}}, {"metadata": "k"}, {"metadata": [("k", "v")]}],
    ids=str,
)
def test_a_word_is_no_list_of_letters(cloud, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(values))):
        cloud.store.create("cell1", project_id="p", **values)
    for rows in ({"project_id": "p"}, ["p"], [[("project_id", "p")]], 1):
        with pytest.raises(InvalidArgument, match="rows: expected a"):
            cloud.store.create_many("cell1", rows)
    assert cloud.router.count().total == 1


def test_what_an_audit_takes_and_gives(cloud) -> None:
    for wrong in (600, "PT10M", None):
        with pytest.raises(InvalidArgument, match="grace: expected a timedelta"):
            cloud.store.audit(grace=wrong)
    for findings in ("all", {}, 1, ["all"]):
        with pytest.raises(InvalidArgument, match="findings: expected a"):
            cloud.store.heal(findings)
    assert cloud.store.heal(cloud.store.audit(grace=timedelta())) == []
    for no_router in (URL, None, cloud.directory):
        with pytest.raises(InvalidArgument, match="router"):
            InstanceStore(no_router)
