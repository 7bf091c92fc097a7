"""A forked child goes on with its parent's manager and what belongs to it, whatever the parent is about at the fork."""

from __future__ import annotations

import contextlib

import pytest
import sqlalchemy as sa

from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.tables import attachment_locks
from cloudcore.errors import Conflict, VolumeBusy
from cloudcore.schema import create_schema
from tests.test_forking import Held, forked

EVERYWHERE = pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)


@pytest.fixture
def tables(database):
    create_schema(database, areas=["attach"])
    return database


@pytest.fixture
def leases(tables):
    opened = Leases(tables, patience=0.0)
    yield opened
    opened.close()


def rows(database) -> dict[str, tuple[str, float]]:
    with database.read() as connection:
        return {row.name: (row.owner, row.expires) for row in connection.execute(sa.select(attachment_locks))}


@EVERYWHERE
def test_child_renews_what_it_holds(tables):
    """Though its copy of the renewing thread is one that does not run."""
    with contextlib.closing(Leases(tables, seconds=0.6)) as leases:
        with leases.hold(["volume/of the parent"]):
            pass

        def hold() -> str:
            with leases.hold(["volume/a"]):
                first = rows(tables)
                while rows(tables) == first:
                    leases.wait(0.01)
            leases.close()
            return str(rows(tables))

        assert leases._renewer is not None
        assert forked(hold) == "{}"


@EVERYWHERE
def test_child_waits_for_no_thread_of_its_parent(leases):
    """One is in the leases' books, others hold names or queue for them."""
    with Held(leases.hold(["volume/a"])), Held(leases._mutex), Held(leases._closing._cond):

        def hold(name: str) -> str:
            try:
                with leases.hold([name]), contextlib.closing(leases):
                    return "held"
            except VolumeBusy as error:
                return str(error)

        assert forked(lambda: hold("volume/b")) == "held"
        [(owner, _)] = rows(leases._database).values()
        assert f"held by {owner}" in forked(lambda: hold("volume/a")), "known by its row, not by the lock of a thread"


@EVERYWHERE
def test_child_neither_renews_nor_gives_back_what_its_parent_holds(tables, leases):
    with leases.hold(["volume/a"]) as lease:
        leases._dropped.add(lease.owner)
        with tables.write() as connection:
            connection.execute(sa.update(attachment_locks).values(expires=1e9))
        assert forked(leases.renew) == "None"
        assert rows(tables) == {"volume/a": (lease.owner, 1e9)}
        leases._dropped.clear()


@EVERYWHERE
def test_child_of_who_holds_has_nothing(tables, leases):
    """The fork is made within the block: there the child may do nothing more, and its end is not the parent's."""
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(leases.hold(["volume/a", "target/h/b"]))
        held = rows(tables)
        assert forked(lease.require) == Conflict.__name__
        assert forked(lambda: tables.run(lease.release)) == "None"
        assert forked(stack.close) == "None"
        assert rows(tables) == held
        lease.require()
    assert rows(tables) == {}


def test_closed_leases_stay_closed_in_the_child(leases):
    leases.close()
    assert forked(lambda: leases.wait(60)) == "None"
