"""Awaited calls: the same answers and errors as the plain ones, bounded threads, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import uuid
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from cloudcore import (
    AllocationLedger,
    AttachmentManager,
    Cell,
    CellRouter,
    HostSelector,
    InstanceDirectory,
    InstanceStore,
    PlacementTree,
    Query,
    Sort,
    create_schema,
)
from cloudcore.aio import (
    AsyncAllocationLedger,
    AsyncAttachmentManager,
    AsyncCellRouter,
    AsyncHostSelector,
    AsyncPlacementTree,
)
from cloudcore.aio.facade import Facade, _Call
from cloudcore.aio.listing import AsyncStream
from cloudcore.errors import Cancelled, CapacityExceeded, InvalidProvider, InvalidQuery
from tests.test_forking import Held, forked
from tests.waiting import until

pytestmark = pytest.mark.anyio

FACADES = [
    (AsyncCellRouter, CellRouter),
    (AsyncPlacementTree, PlacementTree),
    (AsyncAllocationLedger, AllocationLedger),
    (AsyncHostSelector, HostSelector),
    (AsyncAttachmentManager, AttachmentManager),
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def _router(folder, cells: int = 3, each: int = 40) -> CellRouter:
    every = [Cell(f"cell{n}", f"sqlite:///{folder / f'{n}.db'}") for n in range(cells)]
    directory = InstanceDirectory(f"sqlite:///{folder / 'directory.db'}")
    router = CellRouter(every, directory=directory, deadline=60.0)
    store = InstanceStore(router)
    store.create_tables()
    for cell in range(cells):
        rows = [{"display_name": f"web-{n:04}", "project_id": "blue"} for n in range(cell, cells * each, cells)]
        store.create_many(f"cell{cell}", rows)
    return router


@pytest.mark.parametrize(("facade", "plain"), FACADES, ids=lambda each: each.__name__)
def test_offloaded_methods_have_the_signatures_of_the_plain_ones(facade, plain):
    names = [name for name, value in vars(facade).items() if inspect.iscoroutinefunction(value)]
    shared = [name for name in names if hasattr(facade.__dict__[name], "__wrapped__")]
    assert shared
    for name in shared:
        assert facade.__dict__[name].__wrapped__ is getattr(plain, name)
        assert inspect.signature(facade.__dict__[name]) == inspect.signature(getattr(plain, name))


NOT_AWAITED = {
    CellRouter: {
        # asks no cell, or makes only what does; `check` is of memory
        *("add_cell", "breaker", "check", "database", "remove_cell", "status"),
    },
    PlacementTree: {
        # looks at memory, or keeps books there
        *("allocate", "ancestors", "as_placement", "by_uuid", "children", "consumers", "find", "matcher", "provider"),
        *("release", "roots", "set_usage", "subtree", "to_networkx", "to_rich", "to_svg", "to_table", "usage"),
        # makes another tree, which is not bound
        *("from_placement", "from_placement_database", "from_service", "what_if"),
        "snapshot",  # a block of one thread, all in one transaction
    },
    AllocationLedger: {"claim_new", "transact"},  # for what is built on the ledger, in its threads
    HostSelector: set(),
    AttachmentManager: set(),
}


@pytest.mark.parametrize(("facade", "plain"), FACADES, ids=lambda each: each.__name__)
def test_every_call_that_asks_anybody_is_awaited(facade, plain):
    public = {name for name in dir(plain) if not name.startswith("_") and callable(getattr(plain, name))}
    assert public - set(dir(facade)) == NOT_AWAITED[plain]


async def test_pages_streams_and_look_ups(tmp_path):
    plain = _router(tmp_path)
    query = Query(sort=[Sort("display_name")], limit=50)
    async with AsyncCellRouter(plain) as router:
        page = await router.page(query)
        assert [r.display_name for r in page.records] == [r.display_name for r in plain.page(query).records]
        following = await router.page(query, cursor=page.next_cursor)
        assert following.records[0].display_name == "web-0050"
        first = page.records[0]
        assert (await router.get(first.uuid)).display_name == first.display_name
        assert await router.locate(first.uuid) == first.cell
        assert (await router.count(query)).total == 120
        async with router.stream(query) as stream:
            names = [record.display_name async for record in stream]
        assert names == [f"web-{number:04}" for number in range(120)]
        assert all(report.state == "answered" for report in stream.cells.values())
        with pytest.raises(InvalidQuery, match="nonsense"):
            await router.page(Query(sort=[Sort("nonsense")]))


async def test_tasks_that_step_at_once_share_a_stream(tmp_path, monkeypatch):
    """Each record goes to one of them, and none takes an empty block for the end."""
    monkeypatch.setattr("cloudcore.aio.listing._BLOCK", 1)
    found: list[str] = []
    async with AsyncCellRouter(_router(tmp_path, each=20)) as router:
        stream = router.stream(Query(sort=[Sort("display_name")]))

        async def step() -> None:
            found.extend([record.display_name async for record in stream])

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(step)
        assert len(found) == 60
        assert sorted(found) == [f"web-{number:04}" for number in range(60)]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


class OneAtATime:
    """A stream that notes how many threads were in it at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.left = iter(range(4))
        self.second = threading.Event()

    def __iter__(self):
        return self

    def __next__(self) -> int:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside > 1:
            self.second.set()
        self.second.wait(0.1)  # for another, if it can come in
        self.inside -= 1
        return next(self.left)


async def test_tasks_that_step_at_once_are_never_in_the_stream_together(tmp_path, monkeypatch):
    """Which is for one thread at a time."""
    monkeypatch.setattr("cloudcore.aio.listing._BLOCK", 1)
    only = OneAtATime()
    async with AsyncCellRouter(_router(tmp_path, each=1)) as router:
        stream = AsyncStream(router, lambda: only)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(stream.__anext__)
    assert only.most == 1


async def test_a_stream_left_early_leaves_nothing_under_way(tmp_path):
    async with AsyncCellRouter(_router(tmp_path, each=400)) as router:
        async with router.stream(Query(sort=[Sort("display_name")])) as stream:
            async for record in stream:
                if record.display_name == "web-0007":
                    break
        assert [record async for record in stream] == []


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_stream_that_was_closed_gives_nothing(tmp_path, steps):
    """However far it was, and though it never began."""
    async with AsyncCellRouter(_router(tmp_path)) as router:
        stream = router.stream(Query(sort=[Sort("display_name")]))
        for _ in range(steps):
            await anext(stream)
        await stream.close()
        assert [record async for record in stream] == []
        await stream.close()


async def test_the_whole_path(sqlite_database):
    create_schema(sqlite_database)
    async with (
        await AsyncPlacementTree.open(sqlite_database) as tree,
        AsyncAllocationLedger(AllocationLedger(sqlite_database)) as ledger,
        AsyncAttachmentManager(AttachmentManager(sqlite_database)) as manager,
    ):
        for name in ("cn1", "cn2"):
            await tree.add(name, inventory={"VCPU": 4})
        assert len(await tree.candidates("resources=VCPU:3")) == 2
        selector = AsyncHostSelector(HostSelector(tree.sync, ledger.sync, cell_of=lambda _: "cell1"))
        cn2_first = [(1.0, lambda host: float(host.name == "cn2"))]
        (selection,) = await selector.select(
            "resources=VCPU:3", project_id="p", user_id="u", alternates=1, weighers=cn2_first
        )
        assert selection.primary.name == "cn2"
        assert len(selection.alternates) == 1
        taken = await ledger.allocations(selection.instance)
        assert taken == selection.primary.allocations
        with pytest.raises(CapacityExceeded):
            await ledger.claim(str(uuid.uuid4()), taken, project_id="p", user_id="u")
        await tree.refresh()
        volume = manager.sync.volumes.create_volume(2**30)
        attachment = await manager.attach(volume.id, selection.instance)
        assert (await manager.attachment(attachment.id)).state == attachment.state
        await manager.detach(attachment.id)
        assert (await manager.audit()).clean


async def test_a_tree_is_opened_with_the_arguments_of_the_plain_call(sqlite_database):
    plain = inspect.signature(PlacementTree.open).parameters
    awaited = inspect.signature(AsyncPlacementTree.open).parameters
    assert {name: each.default for name, each in awaited.items() if name != "limiter"} == {
        name: each.default for name, each in plain.items()
    }
    create_schema(sqlite_database)
    told = []

    class Observer:
        def span(self, name, fields):
            told.append(name)
            return contextlib.nullcontext(lambda **_: None)

    options = {"strict": True, "generations": "placement", "observer": Observer()}
    async with await AsyncPlacementTree.open(sqlite_database, **options) as tree:
        with pytest.raises(InvalidProvider):
            await tree.add("cn1", traits={"CUSTOM_A"})
        host = await tree.add("cn1", inventory={"VCPU": 4})
        await tree.put_inventory("cn1", "VCPU", 4)
        assert tree.sync.generations(["cn1"]) == {host.uuid: 1}, "Placement counts writes that change nothing"
    assert "placement.add" in told


async def test_history_status_and_checks(sqlite_database):
    create_schema(sqlite_database)
    async with (
        await AsyncPlacementTree.open(sqlite_database) as tree,
        AsyncAllocationLedger(AllocationLedger(sqlite_database)) as ledger,
    ):
        host = await tree.add("cn1", inventory={"VCPU": 4})
        consumer, held = str(uuid.uuid4()), {host.uuid: {"VCPU": 3}}
        await ledger.claim(consumer, held, project_id="p", user_id="u", consumer_type="INSTANCE")
        (entry,) = await ledger.history_of(consumer)
        later = datetime.now(UTC) + timedelta(seconds=1)
        assert await ledger.held_at(consumer, later) == held
        assert await ledger.holders_at(host.uuid, later) == {consumer: {"VCPU": 3}}
        assert await ledger.held_at(consumer, later - timedelta(days=1)) == {}
        assert (await ledger.usages_by_type(project_id="p"))["INSTANCE"].amounts == {"VCPU": 3}
        assert await ledger.prune_history(later) == 0
        assert await ledger.history_of(consumer) == [entry]
        assert (await ledger.status()).overdue_claims == 0
        await tree.refresh()
        assert (await tree.status()).lag == 0
        await ledger.check()
        await tree.check()


class _Slow:
    """Something whose calls block until they are let go, and which counts how many are under way."""

    def __init__(self) -> None:
        self.lock, self.go = threading.Lock(), threading.Event()
        self.busy = self.most = self.ended = 0

    def work(self) -> str:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.go.wait(30)
        with self.lock:
            self.busy -= 1
            self.ended += 1
        return "done"


async def test_no_more_threads_than_the_limiter_has(anyio_backend):
    slow = _Slow()
    facade = Facade(slow, limiter=anyio.CapacityLimiter(3))
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(facade.run, slow.work)
        while slow.busy < 3:
            await anyio.sleep(0.01)
        slow.go.set()
    assert (slow.most, slow.ended) == (3, 20)


async def test_a_thread_that_was_given_up_keeps_its_place_until_it_ends(anyio_backend):
    """Callers that lose patience with a database that stands still must not gather threads."""
    slow, limiter = _Slow(), anyio.CapacityLimiter(2)
    facade = Facade(slow, limiter=limiter)

    async def impatient() -> None:
        with anyio.CancelScope() as scope:
            begun = slow.busy
            async with anyio.create_task_group() as group:
                group.start_soon(facade.read, slow.work)
                while slow.busy == begun:
                    await anyio.sleep(0.005)
                scope.cancel()
        assert scope.cancelled_caught

    await impatient()
    await impatient()
    assert limiter.borrowed_tokens == 2
    async with anyio.create_task_group() as group:
        for work in (facade.read, facade.run):
            group.start_soon(work, slow.work)
        while limiter.statistics().tasks_waiting < 2:
            await anyio.sleep(0.005)
        assert slow.busy == 2
        slow.go.set()
    with anyio.fail_after(20):
        while slow.ended < 4:  # nobody awaits the two that were given up
            await anyio.sleep(0.005)
    assert slow.most == 2
    while limiter.borrowed_tokens:
        await anyio.sleep(0.005)


def test_a_write_that_asyncio_cancels_keeps_its_place():
    slow, limiter = _Slow(), anyio.CapacityLimiter(1)

    async def main() -> None:
        task = asyncio.ensure_future(Facade(slow, limiter=limiter).run(slow.work))
        while not slow.busy:
            await asyncio.sleep(0.005)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)  # anyio has let the thread go by now
        assert limiter.borrowed_tokens == 1
        slow.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_an_event_loop_that_ends_leaves_all_places_to_the_next():
    """Though a thread of it still stands: it belongs to nobody, and tells a loop that has closed."""
    slow, limiter = _Slow(), anyio.CapacityLimiter(1)
    facade = Facade(slow, limiter=limiter)
    told: list[object] = []

    async def give_up() -> None:
        task = asyncio.ensure_future(facade.read(slow.work))
        while not slow.busy:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limiter.borrowed_tokens == 1

    async def next_one() -> None:
        assert limiter.borrowed_tokens == 0
        told.append(await facade.read(lambda: "answered"))

    asyncio.run(give_up())
    asyncio.run(next_one())
    slow.go.set()
    asyncio.run(next_one())
    assert told == ["answered"] * 2


async def test_a_cancelled_write_is_awaited_to_its_end(anyio_backend):
    """Who cancels a claim must not go on while it is still being made."""
    slow = _Slow()
    facade = Facade(slow)
    gone_on = False

    async def cancel(scope: anyio.CancelScope) -> None:
        while not slow.busy:
            await anyio.sleep(0.005)
        scope.cancel()
        await anyio.sleep(0.05)  # whoever does not wait has gone on by now
        slow.go.set()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel, scope)
            await facade.run(slow.work)
            await anyio.sleep(0)
            gone_on = True
        ended = slow.ended
    assert ended == 1
    assert scope.cancelled_caught
    assert not gone_on


@pytest.mark.parametrize("how", ["cancel", "timeout", "twice"])
def test_asyncio_s_own_cancellation_waits_for_a_write_too(how):
    """A shield of anyio's does not hold against task.cancel() and asyncio.timeout()."""
    slow = _Slow()
    facade = Facade(slow)
    letting_go: list[asyncio.Future] = []

    async def main() -> None:
        task = asyncio.ensure_future(facade.run(slow.work))
        while not slow.busy:
            await asyncio.sleep(0.005)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await too_late(task)
        else:
            task.cancel()
            if how == "twice":
                await asyncio.sleep(0.05)
                task.cancel()
            letting_go.append(asyncio.ensure_future(let_go_when(lambda: True)))
            with pytest.raises(asyncio.CancelledError):
                await task
        assert slow.ended == 1
        await letting_go[0]

    async def too_late(task) -> None:
        async with asyncio.timeout(0) as limit:
            letting_go.append(asyncio.ensure_future(let_go_when(limit.expired)))
            await task

    async def let_go_when(cancelled) -> None:
        while not cancelled():
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # whoever does not wait has gone on by now
        slow.go.set()

    asyncio.run(main())


def test_a_tree_opened_for_a_task_that_was_cancelled_is_closed(sqlite_database, monkeypatch):
    """Nobody else could: whoever asked for it never got it."""
    create_schema(sqlite_database)
    begun, go_on = threading.Event(), threading.Event()
    opened, closed = [], []
    plain_open, plain_close = PlacementTree.open, PlacementTree.close

    def slow_open(database, **options) -> PlacementTree:
        opened.append(plain_open(database, **options))
        begun.set()
        assert go_on.wait(30)
        return opened[0]

    def noted_close(tree) -> None:
        closed.append(tree)
        plain_close(tree)

    async def main() -> None:
        task = asyncio.ensure_future(AsyncPlacementTree.open(sqlite_database))
        while not begun.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)  # whoever does not wait has gone on by then
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(opened) == 1
        assert closed == opened

    monkeypatch.setattr(PlacementTree, "open", slow_open)
    monkeypatch.setattr(PlacementTree, "close", noted_close)
    asyncio.run(main())


def test_a_call_that_was_revoked_does_nothing():
    """Though a thread had it already."""
    called = []
    call = _Call(lambda: called.append(1))
    assert call.revoke()
    call()
    assert called == []
    assert not call.ended


def test_a_write_that_has_not_begun_never_begins():
    slow, other = _Slow(), _Slow()
    limiter = anyio.CapacityLimiter(1)

    async def main() -> None:
        first = asyncio.ensure_future(Facade(slow, limiter=limiter).run(slow.work))
        while not slow.busy:
            await asyncio.sleep(0.005)
        second = asyncio.ensure_future(Facade(other, limiter=limiter).run(other.work))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        slow.go.set()
        await first
        await asyncio.sleep(0.05)
        assert other.ended == other.busy == 0

    asyncio.run(main())


async def test_a_cancelled_step_of_a_stream_loses_no_record(tmp_path, anyio_backend):
    """What the thread had taken when the step was given up comes with the next one."""
    plain = _router(tmp_path, each=400)
    entered, go = threading.Event(), threading.Event()

    class Held(type(plain)):
        def stream(self, query=None, **options):
            inner = super().stream(query, **options)

            def held():
                for number, record in enumerate(inner):
                    if number == 100:
                        entered.set()
                        go.wait(30)
                    yield record

            return held()

    plain.__class__ = Held
    async with AsyncCellRouter(plain) as router:
        stream = router.stream(Query(sort=[Sort("display_name")]))
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await anyio.to_thread.run_sync(entered.wait)
                group.cancel_scope.cancel()

            group.start_soon(cancel)
            await stream.__anext__()
        go.set()
        names = []
        with contextlib.suppress(Cancelled):  # the statements of the step were stopped: no more comes, and that is said
            async for record in stream:
                names += [record.display_name]
        assert len(names) >= 100
        assert names == [f"web-{number:04}" for number in range(len(names))]
        if len(names) < 1200:
            with pytest.raises(Cancelled):
                await stream.__anext__()


async def test_closing_in_a_cancelled_scope_closes(tmp_path, anyio_backend):
    router = AsyncCellRouter(_router(tmp_path))
    closed: list[bool] = []
    inner = router.sync.close
    router.sync.close = lambda: (closed.append(True), inner())  # type: ignore[method-assign]
    with anyio.CancelScope() as scope:
        async with router, router.stream(Query(sort=[Sort("display_name")])) as stream:
            await stream.__anext__()
            scope.cancel()
            await anyio.sleep(1)
    assert closed == [True]


def _come_to_rest(router: CellRouter) -> None:
    """Wait until what is fetched ahead is there: a thread that is inside SQLite at the fork has its mutex for ever."""
    workers = router._workers
    until(lambda: not workers._jobs and len(workers._idle) == len(workers._threads))


def test_child_runs_an_event_loop_of_its_own(tmp_path, anyio_backend):
    """With its parent's objects; a stream that the parent has begun ends there and goes on in another, or is left."""
    plain = _router(tmp_path, each=600)
    query = Query(sort=[Sort("display_name")])

    async def begin(found, stream) -> None:
        found.append((await anext(stream)).display_name)

    async def go_on(found, stream) -> None:
        async for record in stream:
            found.append(record.display_name)

    with plain:
        router = AsyncCellRouter(plain)
        stream, found = router.stream(query), []
        anyio.run(begin, found, stream, backend=anyio_backend)

        def child() -> str:
            with pytest.raises(Cancelled, match="resume_cursor"):
                anyio.run(go_on, found, stream, backend=anyio_backend)
            another = router.stream(query, cursor=stream._stream.resume_cursor)
            anyio.run(go_on, found, another, backend=anyio_backend)
            anyio.run(stream.close, backend=anyio_backend)
            return f"{len(found)}, {sorted(set(found)) == found}"

        _come_to_rest(plain)
        with Held(stream._taking):
            assert forked(child) == "1800, True"
        anyio.run(go_on, found, stream, backend=anyio_backend)
        assert len(found) == 1800


def test_child_has_no_part_in_a_stream_of_its_parent(tmp_path):
    """Rows that threads of the parent fetch ahead never come there; neither its end nor a fresh page waits for them."""
    with _router(tmp_path, each=600) as router, router.stream(Query(sort=[Sort("display_name")])) as stream:
        first = next(stream).display_name
        given = []

        def child() -> str:
            with pytest.raises(Cancelled):
                given.extend(stream)
            cursor = stream.resume_cursor
            stream.close()
            given.extend(router.stream(Query(sort=[Sort("display_name")]), cursor=cursor))
            return f"{len(given)}"

        _come_to_rest(router)
        assert forked(child) == "1799"
        assert [first, *(record.display_name for record in stream)] == [f"web-{n:04}" for n in range(1800)]
