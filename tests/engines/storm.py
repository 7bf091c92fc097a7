"""Claims by several callers at several nodes, whatever happens to the nodes, and what is held in the end."""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from cloudcore import AllocationLedger
from cloudcore.database import Database
from cloudcore.errors import DatabaseBusy, DatabaseUnavailable, OutcomeUnknown
from tests.waiting import until

OWNER = {"project_id": "p", "user_id": "u"}


class Storm:
    """Claims by six callers at three nodes, who repeat at another node with the same id whatever passes."""

    def __init__(self, ledgers: list[AllocationLedger], hosts: list[str]) -> None:
        self._ledgers, self._hosts = ledgers, hosts
        self._over = threading.Event()
        self.acknowledged: dict[str, str] = {}

    def _claim(self, worker: int) -> None:
        for number in itertools.count():
            if self._over.is_set():
                return
            consumer, operation = str(uuid.uuid4()), str(uuid.uuid4())
            host = self._hosts[number % len(self._hosts)]
            for node in itertools.count(worker):
                with contextlib.suppress(DatabaseUnavailable, DatabaseBusy, OutcomeUnknown):
                    ledger = self._ledgers[node % len(self._ledgers)]
                    ledger.claim(consumer, {host: {"VCPU": 1}}, operation_id=operation, **OWNER)
                    self.acknowledged[consumer] = host
                    break

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(6)
        self._callers = [self._pool.submit(self._claim, worker) for worker in range(6)]
        return self

    def goes_on(self) -> None:
        """Return when some more claims were acknowledged, or a caller failed, which the end of the storm tells."""
        enough = len(self.acknowledged) + 30
        until(lambda: len(self.acknowledged) >= enough or any(caller.done() for caller in self._callers))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for caller in self._callers:
            caller.result(120)  # what else it raised is a failure
        self._pool.shutdown()


def held(database: Database) -> dict[str, str]:
    """Consumer → the provider of which it holds something."""
    with database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT c.uuid, p.uuid FROM allocations a JOIN consumers c ON c.id = a.consumer_id "
            "JOIN resource_providers p ON p.id = a.provider_id"
        )
        return dict(rows.all())
