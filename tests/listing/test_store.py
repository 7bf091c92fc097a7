"""Writing instances with their directory: killed between any two steps nothing is lost to routed queries."""

from __future__ import annotations

import datetime as dt
import re
from enum import Enum
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloudcore._failpoints import arm, disarm
from cloudcore.database import insert_ignoring_duplicates
from cloudcore.errors import AlreadyExists, CellNotFound, ConstraintViolated, InstanceNotFound, InvalidArgument
from cloudcore.listing import Cell, CellState, Discrepancy, Query, Sort
from cloudcore.listing.tables import directory_routes, instance_metadata, instance_tags, instances
from tests.listing.conftest import ELSEWHERE, NOW, walk

OTHER = "99999999-0000-4000-8000-000000000000"
UUID = "11111111-2222-4333-8444-555555555555"


class Killed(BaseException):
    """Stands for the end of the process: nothing in the library catches it."""


@pytest.fixture
def cloud(clouds):
    """Two instances of a tenant in cell1, one of another in cell2."""
    made = clouds(3)
    made.store.create(
        "cell1", uuid=UUID, project_id="t1", host="h1", display_name="one", tags=["red"], metadata={"a": "1"}
    )
    made.store.create("cell1", project_id="t1", host="h2", display_name="two")
    made.store.create("cell2", project_id="t2", host="h3", display_name="three")
    yield made
    disarm()


def kill(point):
    def die(_):
        disarm()
        raise Killed(point)

    arm(point, die)


def assert_nothing_is_hidden(cloud):
    """Every live record in any cell is found by its tenant and by its host, through the directory."""
    for name, engine in cloud.engines.items():
        with engine.connect() as connection:
            rows = connection.execute(sa.select(instances).where(instances.c.deleted == sa.false())).all()
        for row in rows:
            by_tenant = cloud.router.page(Query(tenant=row.project_id)).records
            assert row.uuid in {record.uuid for record in by_tenant}, f"{name}: lost to its tenant"
            if row.host is not None:
                assert row.uuid in {record.uuid for record in cloud.router.page(Query(host=row.host)).records}
            assert cloud.router.get(row.uuid).uuid == row.uuid


def shown(cloud):
    return sorted((record.uuid, record.cell) for record in walk(cloud.router, Query(limit=2)))


STEPS = [
    ("listing.create.entered", lambda store: store.create("cell3", uuid=OTHER, project_id="t9", host="h9")),
    ("listing.update.expected", lambda store: store.update(UUID, host="h7", project_id="t7")),
    ("listing.update.written", lambda store: store.update(UUID, host="h7", project_id="t7")),
    ("listing.delete.marked", lambda store: store.delete(UUID)),
    ("listing.delete.removed", lambda store: store.delete(UUID, purge=True)),
    ("listing.move.begun", lambda store: store.move(UUID, "cell2")),
    ("listing.move.copied", lambda store: store.move(UUID, "cell2")),
    ("listing.move.switched", lambda store: store.move(UUID, "cell2")),
    ("listing.move.removed", lambda store: store.move(UUID, "cell2")),
]  # fmt: skip


@pytest.mark.parametrize(("point", "operation"), STEPS, ids=[point for point, _ in STEPS])
@pytest.mark.parametrize("then", ["repeated", "healed"])
def test_killed_between_two_steps(cloud, point, operation, then):
    """Nothing is hidden, nothing is shown twice; repeating the call finishes it, and so does an audit."""
    kill(point)
    with pytest.raises(Killed):
        operation(cloud.store)
    assert_nothing_is_hidden(cloud)
    uuids = [uuid for uuid, _ in shown(cloud)]
    assert len(uuids) == len(set(uuids))
    if then == "repeated":
        operation(cloud.store)
        assert [f.what for f in cloud.store.audit(grace=dt.timedelta())] in ([], [Discrepancy.WRONG_ROUTE] * 2)
    cloud.store.heal(cloud.store.audit(grace=dt.timedelta()))
    cloud.store.heal(cloud.store.audit(grace=dt.timedelta()))  # an entry put right may change routes
    assert cloud.store.audit(grace=dt.timedelta()) == []
    assert_nothing_is_hidden(cloud)
    uuids = [uuid for uuid, _ in shown(cloud)]
    assert len(uuids) == len(set(uuids))


@pytest.mark.parametrize("kinds", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ELSEWHERE], ids="-".join)
def test_an_instance_keeps_everything_when_it_moves(clouds, kinds):
    """Row, tags and metadata; also between databases of different kinds."""
    cloud = clouds(*kinds)
    cloud.store.create(
        "cell1", uuid=UUID, project_id="t", display_name="näme ", tags=["a", "b"], metadata={"k": "v"}, created_at=NOW
    )
    before = cloud.router.get(UUID)
    cloud.store.move(UUID, "cell2")
    after = cloud.router.get(UUID)
    assert dict(after) == dict(before)
    assert (before.cell, after.cell) == ("cell1", "cell2")
    assert cloud.router.page(Query(tags=["a", "b"], metadata={"k": "v"})).records == (after,)
    page = cloud.router.page(Query(tenant="t"))
    assert page.cells["cell1"].state is CellState.SKIPPED
    cloud.store.move(UUID, "cell2")


def test_routes_follow_what_is_there(cloud):
    """Tenants and hosts lead to their cells only, and nowhere once the last instance is deleted."""
    assert {
        name for name, each in cloud.router.page(Query(tenant="t2")).cells.items() if each.state is CellState.ANSWERED
    } == {"cell2"}
    assert cloud.router.page(Query(tenant="nobody")).cells["cell1"].state is CellState.SKIPPED
    cloud.store.update(UUID, host="h8")
    assert [record.uuid for record in cloud.router.page(Query(host="h8")).records] == [UUID]
    assert not cloud.router.page(Query(host="h1")).records
    for record in cloud.router.page(Query(tenant="t1")).records:
        cloud.store.delete(record.uuid)
    page = cloud.router.page(Query(tenant="t1"))
    assert {each.state for each in page.cells.values()} == {CellState.SKIPPED}
    assert len(cloud.router.page(Query(tenant="t1", deleted=True)).records) == 2
    with cloud.directory.database.read() as connection:
        counts = connection.execute(sa.select(directory_routes)).all()
    assert {tuple(row)[:3] for row in counts if row.instances} == {("host", "h3", "cell2"), ("tenant", "t2", "cell2")}
    assert {row.instances for row in counts} == {0, 1}


def test_calls_that_are_wrong_do_nothing(cloud):
    """Unknown cells, columns and instances; an instance that is elsewhere."""
    for error, call in (
        (CellNotFound, lambda: cloud.store.create("cell9", project_id="t")),
        (InvalidArgument, lambda: cloud.store.create("cell1", project_id="t", colour="red")),
        (InvalidArgument, lambda: cloud.store.create("cell1", display_name="x")),
        (AlreadyExists, lambda: cloud.store.create("cell2", uuid=UUID, project_id="t1")),
        (InvalidArgument, lambda: cloud.store.update(UUID, uuid="x")),
        (InstanceNotFound, lambda: cloud.store.update("0" * 32, host="x")),
        (InstanceNotFound, lambda: cloud.store.delete("0" * 32)),
    ):
        with pytest.raises(error):
            call()
    assert len(shown(cloud)) == 3
    assert cloud.store.audit(grace=dt.timedelta()) == []


def test_an_audit_finds_what_hands_have_done(cloud):
    """Records and entries changed behind the library's back."""
    with cloud.engines["cell3"].begin() as connection:
        row = {"uuid": OTHER, "project_id": "t5", "vm_state": "active", "created_at": NOW}
        row |= dict.fromkeys(("locked", "hidden", "deleted"), False)
        connection.execute(instances.insert(), row)
    with cloud.engines["cell1"].begin() as connection:
        connection.execute(sa.update(instances).where(instances.c.uuid == UUID).values(host="h99"))
    with cloud.engines["cell2"].begin() as connection:
        connection.execute(sa.delete(instances))
    found = {finding.what for finding in cloud.store.audit(grace=dt.timedelta())}
    assert found == {Discrepancy.RECORD_WITHOUT_ENTRY, Discrepancy.ENTRY_DIFFERS, Discrepancy.ENTRY_WITHOUT_RECORD}
    assert cloud.store.heal(cloud.store.audit(grace=dt.timedelta())) == []
    assert cloud.store.audit(grace=dt.timedelta()) == []
    assert_nothing_is_hidden(cloud)


def test_placeholders_stand_in_place_or_at_the_end(clouds, routers):
    """A dead cell's instances, as the directory knows them: in order by creation, else behind the others, on pages."""
    cloud = clouds(3)
    for number in range(12):
        cloud.store.create(
            f"cell{number % 3 + 1}",
            project_id="t",
            display_name=f"vm{number:02}",
            created_at=NOW + dt.timedelta(seconds=number),
        )
    expected = [record.uuid for record in walk(cloud.router, Query(limit=5))]
    names = {record.uuid: record.display_name for record in walk(cloud.router, Query(limit=5))}
    cells = [
        cell if cell.name != "cell2" else Cell("cell2", "sqlite:////nonexistent/x.db")
        for cell in cloud.router.cells.values()
    ]
    router = routers(cells, directory=cloud.directory)

    in_place = walk(router, Query(limit=5, unknown=True), complete=False)
    assert [record.uuid for record in in_place] == expected
    assert [record.uuid for record in in_place if record.unknown] == [u for u in expected if int(names[u][2:]) % 3 == 1]
    assert {record.vm_state for record in in_place if record.unknown} == {"UNKNOWN"}
    assert {record.cell for record in in_place if record.unknown} == {"cell2"}

    at_the_end = walk(router, Query(limit=5, unknown=True, sort=[Sort("display_name")]), complete=False)
    assert [record.unknown for record in at_the_end] == [False] * 8 + [True] * 4
    assert sorted(record.uuid for record in at_the_end) == sorted(expected)

    assert not any(
        record.unknown
        for record in walk(router, Query(limit=5, unknown=True, where={"vm_state": "active"}), complete=False)
    )
    assert len(walk(router, Query(limit=5, unknown=True, tenant="t"), complete=False)) == 12


def test_both_copies_of_a_move_count_once(cloud):
    """While both cells have the record, pages, counts and streams show the owner's."""
    kill("listing.move.copied")
    with pytest.raises(Killed):
        cloud.store.move(UUID, "cell2")
    assert cloud.router.count().total == 3
    assert cloud.router.count(Query(tenant="t1")).total == 2
    assert [record.cell for record in cloud.router.stream() if record.uuid == UUID] == ["cell1"]
    page = cloud.router.page(Query(limit=3))
    assert len({record.uuid for record in page.records}) == 3
    assert cloud.router.locate(UUID) == "cell1"


def test_placeholders_never_count_as_seen(clouds, routers):
    """A walk that showed only placeholders of a dead cell gives its records, all of them, once it is back."""
    cloud = clouds(2)
    for number in range(7):
        cloud.store.create("cell2", project_id="t", created_at=NOW + dt.timedelta(seconds=number))
    query = Query(limit=2, unknown=True)
    dead = routers(
        [cloud.router.cells["cell1"], Cell("cell2", "sqlite:////nonexistent/x.db")], directory=cloud.directory
    )
    page = dead.page(query)
    while page.next_cursor is not None:
        assert [record.unknown for record in page.records] == [True, True]
        page = dead.page(query, cursor=page.next_cursor)
    found, cursor = [], page.resume_cursor
    while cursor is not None:
        page = cloud.router.page(query, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
    assert len(found) == 7
    assert not any(record.unknown for record in found)


def test_a_wrong_column_is_answered_with_the_right_ones(cloud):
    """Both to write and to change; whoever guesses need not look the table up."""
    with pytest.raises(InvalidArgument, match=r"no column colour; there are uuid, .*deleted_at, tags, metadata$"):
        cloud.store.create("cell1", project_id="t1", colour="blue")
    with pytest.raises(InvalidArgument, match=r"changed here: colour, uuid; there are project_id, .*launched_at$"):
        cloud.store.update(UUID, uuid=OTHER, colour="blue")


def test_the_table_of_columns_in_the_reference_is_the_tables():
    page = (Path(__file__).parents[2] / "docs/reference/listing.md").read_text()
    part = page.partition("### Columns of an instance")[2].partition("\n#")[0]
    told = [
        name
        for line in part.splitlines()
        if line.startswith("| `")
        for name in re.findall("`([a-z_]+)`", line.split("|")[1])
    ]
    assert told == [*instances.c.keys(), "tags", "metadata"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_what_a_column_cannot_hold_is_refused_before_anything_is_written(clouds, kind):
    """One database would cut it, another leave out the row and keep the directory's entry."""
    cloud = clouds(kind)
    kept = cloud.store.create("cell1", project_id="p", display_name="n")
    wrong = [
        {"vm_state": None},
        {"locked": None},
        {"created_at": None},
        {"locked": 1},
        {"display_name": "x" * 256},
        {"display_name": "a\0b"},
        {"display_name": "half a pair \ud800"},
        {"project_id": "p" * 256},
        {"vm_state": "v" * 33},
        {"vcpus": 2**31},
        {"vcpus": "two"},
        {"launched_at": NOW.replace(tzinfo=None)},
    ]
    for values in wrong:
        with pytest.raises(InvalidArgument, match=next(iter(values))):
            cloud.store.create("cell1", **{"project_id": "p", **values})
        if not values.keys() & {"created_at"}:
            with pytest.raises(InvalidArgument, match=next(iter(values))):
                cloud.store.update(kept, **values)
    for values in (
        {"tags": [None]},
        {"tags": ["t" * 81]},
        {"tags": ["\udfff"]},
        {"metadata": {"k": "\ud800"}},
        {"metadata": {"k": "v" * 256}},
        {"metadata": {"k" * 256: "v"}},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(values))):
            cloud.store.create("cell1", project_id="p", **values)
    assert [record.uuid for record in cloud.router.page(Query(deleted=None)).records] == [kept]
    assert cloud.store.audit() == []
    cloud.store.create("cell1", project_id="p" * 255, display_name="\U0001f600" * 255, tags=["t" * 80], vcpus=2**31 - 1)


class Named(str, Enum):  # noqa: UP042 - the kind that is meant
    """What an enumeration of words was before StrEnum: PyMySQL sends the name of a member."""

    ONE = "one"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_members_of_an_enumeration_are_kept_as_the_words_that_they_are(clouds, kind):
    cloud = clouds(kind)
    one = Named.ONE
    kept = cloud.store.create("cell1", project_id=one, display_name=one, tags=[one], metadata={one: one})
    cloud.store.update(kept, host=one)
    with cloud.router.database("cell1").read() as connection:
        row = connection.execute(sa.select(instances.c.project_id, instances.c.display_name, instances.c.host)).one()
        (tag,) = connection.execute(sa.select(instance_tags.c.tag)).scalars()
        pair = connection.execute(sa.select(instance_metadata.c.key, instance_metadata.c.value)).one()
    assert (*row, tag, *pair) == ("one",) * 6


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_row_that_breaks_another_rule_than_its_keys_is_not_passed_over(clouds, kind):
    cloud = clouds(kind)
    database = cloud.router.database("cell1")
    statement = insert_ignoring_duplicates(instance_tags, database.dialect)
    with pytest.raises(ConstraintViolated):
        database.run(lambda connection: connection.execute(statement, {"instance_uuid": None, "tag": "t"}))
