"""A forked child shares nothing with its parent: no answer of one reaches the other, no end of one ends the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa

from cloudcore import PlacementTree, _failpoints, _forks, create_schema
from cloudcore.database import Database, open_engine
from cloudcore.errors import DatabaseUnavailable, OutcomeUnknown
from cloudcore.placement.ledger.group_commit import GroupCommit
from tests.services._host import REPOSITORY

SERVERS = pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT connection_id()"}
SESSION |= dict.fromkeys(("mysqldb", "mariadbconnector"), SESSION["mariadb"])


def forked(work, patience: float = 30.0) -> str:
    """What *work* returns, or the name of what it raises, in a forked child that ends at once afterwards."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = str(work())
        except BaseException as error:
            answer = type(error).__name__
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + patience
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    with os.fdopen(read) as stream:
        return stream.read() or "hung"


def scalar(database, text: str):
    with database.read() as connection:
        return connection.exec_driver_sql(text).scalar_one()


@SERVERS
def test_child_has_sessions_of_its_own(database, dialect):
    mine = scalar(database, SESSION[dialect])
    theirs = {forked(lambda: scalar(database, SESSION[dialect])) for _ in range(2)}
    assert len(theirs - {"hung"}) == 2
    assert str(mine) not in theirs
    assert scalar(database, SESSION[dialect]) == mine, "the child's end has ended the parent's session"


@SERVERS
def test_engine_of_the_caller_is_left_alone_by_the_child_too(database_url, dialect):
    engine = sa.create_engine(database_url)
    database = Database(engine)
    mine = scalar(database, SESSION[dialect])
    assert forked(lambda: scalar(database, SESSION[dialect])) not in {str(mine), "hung"}
    assert scalar(database, SESSION[dialect]) == mine
    engine.dispose()


@SERVERS
def test_open_transaction_belongs_to_the_parent(database):
    """The child's copy fails at once, whether it goes on or gives up; the parent commits."""
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE forked (number integer)")
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO forked VALUES (1)")

        def go_on():
            connection.exec_driver_sql("INSERT INTO forked VALUES (2)")

        assert forked(go_on) == "OperationalError"
        assert forked(connection.rollback) in {"None", "OperationalError"}
        assert forked(connection.close) in {"None", "OperationalError"}
        connection.exec_driver_sql("INSERT INTO forked VALUES (3)")
    assert scalar(database, "SELECT count(*) FROM forked") == 2


@SERVERS
def test_child_in_a_write_learns_that_it_has_none(database):
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE forked (number integer)")

    def child_commits():
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO forked VALUES (1)")
            if not (child := os.fork()):
                return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == 7, code

    parent = os.getpid()
    try:
        child_commits()
    except (OutcomeUnknown, DatabaseUnavailable):
        os._exit(7 if os.getpid() != parent else 1)
    if os.getpid() != parent:
        os._exit(1)
    assert scalar(database, "SELECT count(*) FROM forked") == 1


@SERVERS
def test_fork_in_the_midst_of_threads(database, dialect):
    """Locks of the pool that another thread holds at the fork do not hold the child up."""
    over = threading.Event()
    wrong = []

    def ask(number: int) -> None:
        while not over.is_set():
            answer = scalar(database, f"SELECT {number}")
            if answer != number:
                wrong.append((number, answer))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    answers = {forked(lambda n=n: [scalar(database, f"SELECT {n}") for _ in range(20)] == [n] * 20) for n in range(15)}
    over.set()
    for thread in threads:
        thread.join()
    assert (answers, wrong) == ({"True"}, [])


LEAVES = """
import os, sys
from cloudcore.database import Database
database = Database(sys.argv[1])
def session():
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(sys.argv[2]).scalar_one()
held = database.engine.connect()
mine = held.exec_driver_sql(sys.argv[2]).scalar_one()
idle = session()
if not (child := os.fork()):
    if sys.argv[3] == "uses":
        session()
    sys.exit()  # with all its destructors
os.waitpid(child, 0)
assert held.exec_driver_sql(sys.argv[2]).scalar_one() == mine
assert session() == idle
print("both live")
"""


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "mysqldb", "mariadbconnector"], indirect=True)
@pytest.mark.parametrize("child", ["uses", "leaves"])
def test_orderly_end_of_the_child_says_no_farewell_to_the_server(database_url, dialect, child):
    command = [sys.executable, "-c", LEAVES, database_url, SESSION[dialect], child]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert ended.stdout == "both live\n", ended.stderr
    assert "Traceback" not in ended.stderr


def test_sqlite_file_is_opened_anew(sqlite_database):
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE forked (number integer)")

    def add():
        with sqlite_database.write() as connection:
            connection.exec_driver_sql("INSERT INTO forked VALUES (1)")

    assert [forked(add) for _ in range(3)] == ["None"] * 3
    add()
    assert scalar(sqlite_database, "SELECT count(*) FROM forked") == 4


def test_database_in_memory_is_copied():
    with Database(open_engine("sqlite://")) as database:
        with database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE forked (number integer)")
        assert forked(lambda: scalar(database, "SELECT count(*) FROM forked")) == "0"


def doubling(tickets) -> None:
    for ticket in tickets:
        ticket.answer = 2 * ticket.request


def test_group_commit_begins_with_nobody_in_the_child():
    """At the fork one thread leads, one waits for it, and one has just come to the queue."""
    leading, go_on = threading.Event(), threading.Event()

    def work(tickets) -> None:
        if tickets[0].request == 1:
            leading.set()
            assert go_on.wait(60)
        doubling(tickets)

    group: GroupCommit[int, int] = GroupCommit(work, lambda ask: ask)
    threads = [threading.Thread(target=group.submit, args=(ask,)) for ask in (1, 2)]
    try:
        threads[0].start()
        assert leading.wait(20)
        threads[1].start()
        while not group._waiting:
            threads[1].join(0.001)
        assert forked(lambda: [group.submit(ask) for ask in (3, 4)]) == "[6, 8]"
        with group._mutex:
            assert forked(lambda: [group.submit(ask) for ask in (3, 4)]) == "[6, 8]"
    finally:
        go_on.set()
        for thread in threads:
            thread.join()


def test_child_of_who_leads_a_group_goes_on_too():
    """The fork is made in the midst of a group: both sides settle it, and then do another."""
    children: list[int] = []

    def work(tickets) -> None:
        if not children:
            children.append(os.fork())
            signal.alarm(0 if children[0] else 30)
        doubling(tickets)

    group: GroupCommit[int, int] = GroupCommit(work, lambda ask: ask)
    answers = []
    try:
        answers += [group.submit(ask) for ask in (1, 2, 3)]
    finally:
        if children == [0]:
            os._exit(7 if answers == [2, 4, 6] else 1)
    assert answers == [2, 4, 6]
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7


class Held:
    """A thread that has something, from the beginning of the block to its end."""

    def __init__(self, lock) -> None:
        self._lock, self._has, self._over = lock, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with self._lock:
            self._has.set()
            assert self._over.wait(60)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._has.wait(20)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_bound_tree_goes_on_in_the_child_whoever_was_at_work(database):
    """Another thread has the turn to write, or the register of names; the child reads, edits, and parts again."""
    create_schema(database.engine)
    with PlacementTree.open(database) as tree:
        tree.add("before", inventory={"VCPU": 4})

        def go_on() -> str:
            tree.names.add_trait("CUSTOM_OF_THE_CHILD")
            tree.add(f"in {os.getpid()}", inventory={"VCPU": 4})
            tree.refresh()
            return str(len(list(tree)))

        answers = []
        for lock in (tree._binding._writing, tree.names._lock):
            with Held(lock):
                answers.append(forked(go_on))
        assert answers == ["2", "3"]
        tree.refresh()
        assert len(list(tree)) == 3
        assert {"CUSTOM_OF_THE_CHILD"} <= tree.names.traits()


def test_child_of_an_edit_that_was_not_yet_in_memory_reads_it(sqlite_database):
    """It is committed, and the thread that has made it has not come to its own copy of the tree."""
    create_schema(sqlite_database.engine)
    committed, go_on = threading.Event(), threading.Event()

    def stop(_: str) -> None:
        committed.set()
        assert go_on.wait(60)

    with PlacementTree.open(sqlite_database) as tree:
        thread = threading.Thread(target=tree.add, args=("new",))
        _failpoints.arm("database.commit.after", stop)
        try:
            thread.start()
            assert committed.wait(20)
            _failpoints.disarm()
            assert forked(lambda: (tree.refresh(), [p.name for p in tree])) == "(1, ['new'])"
        finally:
            _failpoints.disarm()
            go_on.set()
            thread.join()


def forked_amid(owner, steps, look) -> str:
    """What *look* returns in a child whose fork comes while another thread, with *owner*'s lock, is to take *steps*."""
    lock = _forks._locks[owner]
    begun, tick = threading.Event(), threading.Event()
    seen = []

    def change() -> None:
        with lock(owner):
            begun.set()
            for _ in range(20_000):  # until the fork waits for the lock
                if seen:
                    break
                tick.wait(0.001)
            for step in steps:
                step()

    class Noting:
        def __enter__(self):
            seen.append(threading.get_ident())
            return lock(owner).__enter__()

        def __exit__(self, *told):
            return lock(owner).__exit__(*told)

    thread = threading.Thread(target=change)
    thread.start()
    assert begun.wait(20)
    _forks._locks[owner] = lambda _: Noting()
    answer = forked(look)
    _forks._locks[owner] = lock
    thread.join()
    return answer


def test_fork_waits_until_a_tree_in_memory_is_whole():
    """Another thread is in the midst of a change; the fork is made when that is done, and not before."""
    tree = PlacementTree()
    tree.add("before")
    steps = [lambda: tree.add("half"), lambda: tree.add("whole")]
    answer = forked_amid(tree._state, steps, lambda: [provider.name for provider in tree])
    assert answer == "['before', 'half', 'whole']"
    with tree._state.lock:
        assert forked(lambda: tree.add("by who forks").name) == "by who forks"
    assert len(list(tree)) == 3


class Parted:
    """Knows whether it is a child's."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble, self.parted = trouble, False
        _forks.when_forked(self, Parted.part)

    def part(self) -> None:
        self.parted = True
        if self.trouble:
            raise self.trouble


def test_action_that_fails_keeps_no_other_from_its_own():
    owners = [Parted(), Parted(ValueError("no")), Parted()]
    assert forked(lambda: [owner.parted for owner in owners]) == "[True, True, True]"
    assert not any(owner.parted for owner in owners)
