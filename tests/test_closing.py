"""Closed in the midst of calls: each call under way ends with its answer or a typed error, and nobody hangs.

The router's own test is in ``tests/listing/test_exits.py``; what libvirt needs in ``tests/hypervisor/test_unplug.py``.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, AttachmentManager, HostSelector, PlacementTree, ResourceRequest, create_schema
from cloudcore.attach import EmbeddedVolumes
from cloudcore.database import Database, open_engine
from cloudcore.errors import Closed, CloudcoreError
from cloudcore.listing import InstanceDirectory
from cloudcore.placement.storage.store import Watch
from tests.waiting import until

CALLERS = 4
SMALL = ResourceRequest.from_query("resources=VCPU:1&limit=1")


@attrs.frozen
class Used:
    """Something that is called by several threads and then closed."""

    call: Callable[[int], object]
    close: Callable[[], object]


def opened(url: str) -> str:
    create_schema(url)
    with PlacementTree.open(url) as tree:
        tree.add("host", inventory={"VCPU": 10_000})
    return url


def a_tree(url: str) -> Used:
    tree = PlacementTree.open(opened(url))
    return Used(lambda number: (tree.add(f"h{number}", inventory={"VCPU": 1}), tree.refresh()), tree.close)


def a_ledger(url: str, group_commit: int = 0) -> Used:
    with PlacementTree.open(opened(url)) as tree:
        host = tree.roots()[0].uuid
    ledger = AllocationLedger(url, group_commit=group_commit)

    def claim(_: int) -> None:
        ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, project_id="p", user_id="u")

    return Used(claim, ledger.close)


def a_selector(url: str) -> Used:
    tree, ledger = PlacementTree.open(opened(url)), AllocationLedger(url)
    selector = HostSelector(tree, ledger, cell_of=lambda _: "cell")

    def select(_: int) -> None:
        selector.select(SMALL, project_id="p", user_id="u")

    return Used(select, lambda: (ledger.close(), tree.close()))


def a_manager(url: str) -> Used:
    """With embedded volumes in the same database."""
    manager = AttachmentManager(opened(url))

    def reserve(_: int) -> None:
        manager.reserve(manager.volumes.create_volume().id, str(uuid.uuid4()))

    return Used(reserve, manager.close)


def volumes(url: str) -> Used:
    create_schema(url)
    made = EmbeddedVolumes(url)
    return Used(lambda _: made.volume(made.create_volume().id), made.close)


def a_directory(url: str) -> Used:
    directory = InstanceDirectory(url)
    return Used(lambda number: directory.cells_of_tenant(f"t{number}"), directory.close)


KINDS = {
    "tree": a_tree,
    "ledger": a_ledger,
    "ledger in groups": functools.partial(a_ledger, group_commit=16),
    "selector": a_selector,
    "manager": a_manager,
    "volumes": volumes,
    "directory": a_directory,
}


@pytest.fixture
def lent(sqlite_database: Database) -> Database:
    """A Database of the caller's, with tables: nothing that uses it closes it."""
    create_schema(sqlite_database)
    return sqlite_database


def test_a_closed_tree_reads_and_writes_no_more_though_the_database_is_open(lent: Database) -> None:
    """What it has read stays to be looked at and searched."""
    tree = PlacementTree.open(lent)
    host = tree.add("host", inventory={"VCPU": 8})
    calls = [
        tree.refresh,
        tree.status,
        tree.names.traits,
        tree.names.refresh,
        functools.partial(tree.names.add_trait, "CUSTOM_A"),
        functools.partial(tree.add, "other"),
        functools.partial(tree.update, host, traits={"CUSTOM_A"}),
        functools.partial(tree.put_inventory, host, "VCPU", 9),
        functools.partial(tree.rename, host, "another"),
        functools.partial(tree.remove, host),
        functools.partial(tree.remove, host, operation_id="once"),
        functools.partial(tree.load, tree.as_placement()),
        functools.partial(tree.times, [host]),
        functools.partial(tree.what_if, consumers=True),
        tree.snapshot().__enter__,
    ]
    tree.close()
    for call in calls:
        with pytest.raises(Closed, match="the tree is closed") as refused:
            call()
        assert refused.value.field == "tree"
    tree.close()
    assert [candidate.root for candidate in tree.candidates("resources=VCPU:1")] == [host.uuid]
    with PlacementTree.open(lent) as fresh:
        assert [root.name for root in fresh.roots()] == ["host"]


@pytest.mark.parametrize("group_commit", [0, 16])
def test_a_closed_ledger_grants_nothing_though_the_database_is_open(lent: Database, group_commit: int) -> None:
    with PlacementTree.open(lent) as tree:
        wanted = {tree.add("host", inventory={"VCPU": 8}).uuid: {"VCPU": 1}}
        selector = HostSelector(tree, AllocationLedger(lent), cell_of=lambda _: "cell")
    ledger = AllocationLedger(lent, group_commit=group_commit)
    who = {"project_id": "p", "user_id": "u"}
    one, two, migration = (str(uuid.uuid4()) for _ in range(3))
    ledger.claim(one, wanted, **who)
    calls = [
        functools.partial(ledger.claim, two, wanted, **who),
        functools.partial(ledger.claim, two, wanted, generation=1, **who),
        functools.partial(ledger.settle, one),
        functools.partial(ledger.release, one),
        functools.partial(ledger.begin_move, one, migration, wanted),
        functools.partial(ledger.allocations, one),
        ledger.consumers,
        ledger.expire,
        ledger.audit,
        ledger.status,
        ledger.check,
        functools.partial(HostSelector(PlacementTree(), ledger, cell_of={}).select_destination, one, migration, SMALL),
    ]
    ledger.close()
    for call in calls:
        with pytest.raises(Closed, match="the ledger is closed") as refused:
            call()
        assert refused.value.field == "ledger"
    ledger.close()
    repr(ledger)
    with pytest.raises(Closed, match="the tree is closed"):
        selector.select(SMALL, **who)
    assert [held.consumer for held in AllocationLedger(lent).consumers()] == [one]


def test_a_closed_manager_takes_no_lease_though_the_database_is_open(lent: Database) -> None:
    """None of its calls begins: nobody would renew what it took."""
    manager = AttachmentManager(lent)
    manager.close()
    for name, member in inspect.getmembers(AttachmentManager, inspect.isfunction):
        if not name.startswith("_") and name != "close":
            required = [
                parameter
                for parameter in list(inspect.signature(member).parameters.values())[1:]
                if parameter.default is parameter.empty
            ]
            with pytest.raises(Closed, match="the manager is closed") as refused:
                getattr(manager, name)(*(str(uuid.uuid4()) for _ in required))
            assert refused.value.field == "manager"
    manager.close()
    assert AttachmentManager(lent).audit().findings == ()


def test_an_attach_under_way_at_the_close_ends_well_over_an_open_database(lent: Database) -> None:
    class Volumes(EmbeddedVolumes):
        def volume(self, volume_id: str) -> Any:
            manager.close()
            return super().volume(volume_id)

    volume, another = (EmbeddedVolumes(lent).create_volume().id for _ in range(2))
    manager = AttachmentManager(lent, Volumes(lent))
    instance = str(uuid.uuid4())
    made = manager.attach(volume, instance)
    with pytest.raises(Closed):
        manager.attach(another, instance)
    with AttachmentManager(lent) as other:
        assert [each.id for each in other.attachments(instance_id=instance)] == [made.id]


def sessions(url: str) -> int:
    """Of others, in this database of a server."""
    text = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
    }
    engine = open_engine(url)
    with engine.connect() as connection:
        found: int = connection.scalar(sa.text(text[Database(engine).dialect]))
    engine.dispose()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_closed_in_the_midst_of_calls(kind, database_url, dialect):
    """By another thread. Later calls are refused, and open nothing."""
    threads = threading.active_count()
    used = KINDS[kind](database_url)
    numbers, heard, done = itertools.count(), [], threading.Semaphore(0)

    def work() -> None:
        try:
            while True:
                used.call(next(numbers))
                done.release()
        except BaseException as error:
            heard.append(error)

    callers = [threading.Thread(target=work) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for _ in range(2 * CALLERS):
        assert done.acquire(timeout=60), heard
    used.close()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert [isinstance(error, CloudcoreError) for error in heard] == [True] * CALLERS, heard
    with pytest.raises(Closed, match="closed"):
        used.call(next(numbers))
    used.close()
    until(lambda: threading.active_count() <= threads)
    if dialect != "sqlite":
        heard.clear()  # errors keep what was under way
        until(lambda: sessions(database_url) == 0)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_what_is_in_use_at_the_close_is_closed_when_it_is_given_back(database_url, dialect):
    """At once, not when somebody collects garbage; what was under way ends well."""
    database = Database(database_url)
    gc.disable()
    try:
        with database.read() as connection:
            database.close()
            assert connection.scalar(sa.text("SELECT 1")) == 1
        until(lambda: sessions(database_url) == 0, 20)
    finally:
        gc.enable()


class Slowly:
    """A connection that is in use until it is told to go on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.used, self.go_on, self.over = threading.Event(), threading.Event(), False

    def execute(self, statement: str) -> Any:
        self.used.set()
        assert self.go_on.wait(60)
        answer = self._connection.execute(statement)
        self.over = True
        return answer

    def close(self) -> None:
        assert self.over, "closed while it is in use, which ends the process"
        self._connection.close()


def test_a_file_is_not_closed_while_another_thread_looks_whether_it_changed(sqlite_database: Database) -> None:
    create_schema(sqlite_database)
    watch = Watch.of(sqlite_database)
    slowly = Slowly(watch._connection)
    watch._connection = slowly
    with ThreadPoolExecutor(2) as threads:
        look = threads.submit(watch.version)
        assert slowly.used.wait(60)
        close = threads.submit(watch.close)
        with pytest.raises(TimeoutError):
            close.result(timeout=0.1)
        slowly.go_on.set()
        assert isinstance(look.result(timeout=60), int)
        close.result(timeout=60)
    assert watch.version() is None
