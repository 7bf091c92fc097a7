"""Ctrl-C at any moment of a claim: it is done or not, its repeat says so, and nobody else waits for it."""

from __future__ import annotations

import gc
import threading
import uuid

import pytest

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.errors import CloudcoreError, OutcomeUnknown
from tests.interrupting import at_each_moment
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
STEPS = {"sqlite": 1, "postgresql": 5, "mariadb": 7}


class Claims:
    """Claims of one instance after the other, each made by :meth:`make` until :meth:`next`."""

    def __init__(self, ledger: AllocationLedger, host: str) -> None:
        self.ledger, self.host, self.number = ledger, host, 0
        self.next()

    def next(self) -> None:
        self.consumer, self.operation = str(uuid.uuid4()), str(uuid.uuid4())

    def make(self) -> None:
        wanted = {self.host: {"VCPU": 1}}
        self.ledger.claim(self.consumer, wanted, project_id="p", user_id="u", operation_id=self.operation)
        self.number += 1


@pytest.fixture(params=[0, 16], ids=["alone", "in groups"])
def claims(request, database) -> Claims:
    create_schema(database)
    with PlacementTree.open(database) as tree:
        host = tree.add("host", inventory={"VCPU": 100_000}).uuid
    return Claims(AllocationLedger(database, group_commit=request.param), host)


def test_a_claim_that_is_interrupted_is_done_once_by_its_repeat(claims, database, dialect):
    claims.make()
    interrupted = 0
    for where in at_each_moment(claims.make, "placement/ledger", step=STEPS[dialect]):
        interrupted += 1
        claims.make()
        if database.engine.pool.checkedout():
            gc.collect()  # an interrupt in the midst of SQLAlchemy may leave a circle
        assert database.engine.pool.checkedout() == 0, where
        assert claims.ledger.allocations(claims.consumer), where
        claims.next()
    claims.ledger.check()
    assert interrupted > 10


@pytest.mark.parametrize("claims", [16], indirect=True)
def test_an_interrupted_claim_holds_up_nobody_beside_it(claims, database, dialect):
    """Who leads a group, who follows, and who comes next."""
    over, heard = threading.Event(), []

    def beside(other: Claims) -> None:
        while not over.is_set():
            try:
                other.make()
            except OutcomeUnknown:
                continue  # with the same operation id
            except CloudcoreError as error:
                heard.append(error)
                return
            other.next()

    others = [Claims(claims.ledger, claims.host) for _ in range(2)]
    threads = [threading.Thread(target=beside, args=[other]) for other in others]
    for thread in threads:
        thread.start()
    for _ in at_each_moment(claims.make, "placement/ledger", step=4 + STEPS[dialect], ends=8):
        claims.make()
        claims.next()
        before = [other.number for other in others]
        until(lambda before=before: heard or all(o.number > n for o, n in zip(others, before, strict=True)), 60)
    over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert heard == []
    gc.collect()  # an interrupt in the midst of SQLAlchemy may leave a circle
    assert database.engine.pool.checkedout() == 0
    claims.ledger.check()
