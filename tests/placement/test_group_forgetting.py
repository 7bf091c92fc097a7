"""Groups without members are forgotten while claims go on, and no host ever holds more members than it may.

A group's row is what claims lock: it goes away while they wait for it, and a member comes back while it is forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from cloudcore import Database
from cloudcore._failpoints import arm, disarm
from cloudcore.errors import NoValidHost
from cloudcore.placement import HostGroup
from cloudcore.placement.ledger.host_groups import forget_groups
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.scheduling.rescheduling import prune_attempts
from cloudcore.placement.tables import host_group_members, host_groups
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud

GROUP = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
PAIRS = HostGroup(policy="anti-affinity", uuid=uuid_of("group"), max_per_host=2)
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mysql": "SELECT COUNT(*) FROM information_schema.innodb_trx JOIN information_schema.processlist "
    "ON trx_mysql_thread_id = id WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()",
}


def groups(cloud: Cloud) -> dict[str, set[str]]:
    """Every group that is kept, with its members."""
    with cloud.database.read() as connection:
        kept: dict[str, set[str]] = {uuid: set() for uuid in connection.scalars(sa.select(host_groups.c.uuid))}
        for instance, group in connection.execute(sa.select(host_group_members)):
            kept[group].add(instance)
    return kept


def until_waiting(database: Database, threads: list[threading.Thread], met: Collection[object] = ()) -> None:
    """Return when each of *threads* waits for a lock, or has ended, or is in *met*. SQLite's writers queue unseen."""
    if database.dialect == "sqlite":
        return
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while True:
            on_their_way = sum(thread.is_alive() and thread not in met for thread in threads)
            if connection.exec_driver_sql(WAITING[database.dialect]).scalar_one() >= on_their_way:
                return
            threading.Event().wait(0.15)  # MariaDB shows what it showed before until nobody has asked for 0.1 s


@contextmanager
def at(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Do *action* whenever the failpoint is passed."""
    arm(name, lambda _: action())
    try:
        yield
    finally:
        disarm(name)


class Boot(threading.Thread):
    """One scheduler that places one member; what came of it is in *placed*."""

    def __init__(self, cloud: Cloud, group: HostGroup = GROUP) -> None:
        super().__init__(daemon=True)
        self.cloud, self.group = cloud, group
        self.placed: str | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            (chosen,) = self.cloud.select(group=self.group)
        except NoValidHost:
            pass
        except Exception as error:
            self.failure = error
        else:
            self.placed = chosen.instance


@pytest.fixture
def schedulers(cloud: Cloud) -> Iterator[list[Cloud]]:
    """Three more schedulers of the same cloud, which has one host, with room for all."""
    cloud.add_hosts(1, 1, cores=64)
    others = [Cloud(cloud.database) for _ in range(3)]
    yield others
    for other in others:
        other.close()


def test_what_holds_nothing_is_forgotten_and_the_rest_is_kept(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    other = HostGroup(policy="affinity", uuid=uuid_of("other"))
    gone, back, there = (chosen.instance for chosen in cloud.select(3, group=GROUP))
    (beside,) = cloud.select(group=other)
    cloud.ledger.release(gone, forever=True)
    cloud.ledger.release(back)
    assert forget_groups(cloud.database) == 0
    assert groups(cloud) == {GROUP.uuid: {there}, other.uuid: {beside.instance}}
    cloud.ledger.release(there)
    assert prune_attempts(cloud.ledger, datetime.now(UTC)) == 0
    assert groups(cloud) == {other.uuid: {beside.instance}}
    cloud.ledger.release(beside.instance, forever=True)
    assert (forget_groups(cloud.database), forget_groups(cloud.database)) == (1, 0)
    assert groups(cloud) == {}
    (again,) = cloud.select(instances=[back], group=HostGroup(policy="affinity", uuid=GROUP.uuid))
    assert groups(cloud) == {GROUP.uuid: {again.instance}}


def test_a_group_that_lost_its_members_otherwise_is_forgotten_too(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    (chosen,) = cloud.select(group=GROUP)
    cloud.ledger.release(chosen.instance)
    with cloud.database.write() as connection:
        connection.execute(sa.delete(host_group_members))
    assert forget_groups(cloud.database) == 1
    assert groups(cloud) == {}


def test_so_many_groups_at_once_and_no_more(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    for number in range(3):
        (chosen,) = cloud.select(group=HostGroup(policy="affinity", uuid=uuid_of(number)))
        cloud.ledger.release(chosen.instance)
    assert [forget_groups(cloud.database, limit=2) for _ in range(3)] == [2, 1, 0]


def test_a_member_counts_on_its_dead_host_until_that_is_proved_gone(cloud: Cloud) -> None:
    """The instance is deleted, its migration still holds the source: neither is forgotten."""
    cloud.add_hosts(1, 2)
    (chosen,) = cloud.select(group=GROUP)
    migration = uuid_of("migration")
    cloud.selector.select_destination(chosen.instance, migration, FLAVOUR, kind="evacuation", group=GROUP)
    cloud.ledger.release(chosen.instance, forever=True)
    assert forget_groups(cloud.database) == 0
    (second,) = cloud.select(group=GROUP)
    assert cloud.host_of(second.instance) != chosen.primary.name
    with pytest.raises(NoValidHost, match="anti-affinity"):
        cloud.select(group=GROUP)
    cloud.ledger.abandon_move(migration, proof="fenced")
    cloud.ledger.release(second.instance)
    assert forget_groups(cloud.database) == 1


def test_claims_that_wait_for_a_group_that_goes_away_wait_for_each_other(cloud: Cloud, schedulers: list[Cloud]) -> None:
    """All find nothing to lock when the wait is over; one records the group again, and the last is refused."""
    (chosen,) = cloud.select(group=PAIRS)
    cloud.ledger.release(chosen.instance)
    boots = [Boot(scheduler, PAIRS) for scheduler in schedulers]
    joined: set[object] = set()

    def meanwhile() -> None:
        for boot in boots:
            boot.start()
        until_waiting(cloud.database, boots)

    def meet() -> None:
        joined.add(threading.current_thread())
        until_waiting(cloud.database, boots, joined)

    with at("ledger.group.forget.after", meanwhile), at("ledger.select.claim", meet):
        assert forget_groups(cloud.database) == 1
        for boot in boots:
            boot.join()
    assert [boot.failure for boot in boots] == [None] * 3
    placed = {boot.placed for boot in boots if boot.placed}
    assert len(placed) == 2, "one host may hold two members"
    assert groups(cloud) == {GROUP.uuid: placed}


def test_a_member_that_comes_back_is_not_forgotten(cloud: Cloud, schedulers: list[Cloud]) -> None:
    """It holds nothing yet when the forgetting begins, and something when it ends."""
    (chosen,) = cloud.select(group=GROUP)
    cloud.ledger.release(chosen.instance)
    forgetting = threading.Thread(target=forget_groups, args=[cloud.database])

    def meanwhile() -> None:
        forgetting.start()
        until_waiting(cloud.database, [forgetting])

    with at("ledger.select.claim", meanwhile):
        cloud.select(instances=[chosen.instance], group=GROUP)
    forgetting.join()
    assert groups(cloud) == {GROUP.uuid: {chosen.instance}}
    with pytest.raises(NoValidHost, match="anti-affinity"):
        schedulers[0].select(group=GROUP)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # the others lock what an insert found in its way
def test_a_membership_that_is_forgotten_between_insert_and_look_is_written_again(
    cloud: Cloud, schedulers: list[Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance was a member of another group; that one is forgotten as soon as it was in the way."""
    (chosen,) = cloud.select(group=GROUP)
    cloud.ledger.release(chosen.instance)
    run, forgotten = Session.run, []

    def then_forget(session: Session, sql: str, parameters: Sequence[object] = ()) -> int:
        rows = run(session, sql, parameters)
        if "INTO host_group_members" in sql:
            forgotten.append(forget_groups(cloud.database))
        return rows

    monkeypatch.setattr(Session, "run", then_forget)
    other = HostGroup(policy="affinity", uuid=uuid_of("other"))
    cloud.select(instances=[chosen.instance], group=other)
    assert forgotten == [1, 0], "the transaction was repeated"
    assert groups(cloud) == {other.uuid: {chosen.instance}}


def test_a_crowd_never_exceeds_the_limit_while_its_group_is_forgotten(
    cloud: Cloud, schedulers: list[Cloud], request: pytest.FixtureRequest
) -> None:
    """Each member is deleted as soon as it is placed, so that the group is empty again and again."""
    rounds = 200 if request.config.getoption("--long") else 25
    guard, alive, breaches = threading.Lock(), set(), []
    placed, forgotten, failures = [], [], []
    ended = threading.Event()

    def churn(scheduler: Cloud) -> None:
        for _ in range(rounds):
            boot = Boot(scheduler)
            boot.run()
            failures.extend([boot.failure] if boot.failure else [])
            if boot.placed is None:
                continue
            with guard:
                alive.add(boot.placed)
                placed.append(boot.placed)
                if len(alive) > GROUP.max_per_host:
                    breaches.append(set(alive))
            assert scheduler.host_of(boot.placed)
            with guard:
                alive.discard(boot.placed)
            scheduler.ledger.release(boot.placed)

    def forget() -> None:
        try:
            while not ended.is_set():
                forgotten.append(forget_groups(cloud.database))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=[scheduler]) for scheduler in schedulers]
    forgetting = threading.Thread(target=forget)
    for thread in [*threads, forgetting]:
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    forgetting.join()
    assert (breaches, failures) == ([], [])
    assert placed
    assert sum(forgotten) > 0, "no group was forgotten: the test tests nothing"
