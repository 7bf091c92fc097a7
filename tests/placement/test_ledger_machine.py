"""Any sequence of calls gives what a model in plain Python gives: the same holders, the same refusals."""

from __future__ import annotations

import copy

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloudcore.database import Database
from cloudcore.errors import CloudcoreError
from cloudcore.placement import AllocationLedger
from tests.placement import ledger_worlds
from tests.placement.ledger_worlds import uuid_of

OWNER = {"project_id": "p", "user_id": "u"}
HOSTS = ("h1", "h2", "h3")
CONSUMERS = ("a", "b", "c")
MIGRATIONS = ("m1", "m2", "m3")
CAPACITY = 6

hosts, consumers, migrations = st.sampled_from(HOSTS), st.sampled_from(CONSUMERS), st.sampled_from(MIGRATIONS)
holdings = st.dictionaries(hosts, st.integers(1, 4), min_size=1, max_size=2)


class Refusal(Exception):
    """The model refuses; the argument is the name of the error."""


class Model:
    """The rules, said as simply as can be."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, int]] = {}
        self.capacity = dict.fromkeys(HOSTS, CAPACITY)
        self.retired: set[str] = set()
        self.moves: dict[str, dict] = {}

    def used(self, host: str) -> int:
        return sum(rows.get(host, 0) for rows in self.held.values())

    def put(self, wanted: dict[str, dict[str, int]]) -> None:
        for consumer in sorted(wanted, key=uuid_of):
            if consumer in self.retired and wanted[consumer]:
                raise Refusal("ConsumerRetired")
        before = {host: self.used(host) for host in HOSTS}
        after = {**self.held, **wanted}
        for host in HOSTS:
            total = sum(rows.get(host, 0) for rows in after.values())
            if total > before[host] and total > self.capacity[host]:
                raise Refusal("CapacityExceeded")
        self.held = {consumer: rows for consumer, rows in after.items() if rows}

    def live(self, consumer: str):
        moves = [m for m in self.moves.values() if m["state"] == "held" and m["instance"] == consumer]
        return moves[0] if moves else None

    def write(self, wanted: dict[str, dict[str, int]]) -> None:
        """Replace, with the moves that follow."""
        both = dict(wanted)
        for consumer, rows in wanted.items():
            move = self.live(consumer)
            if move and not rows:
                both[move["migration"]] = {}
        self.put(both)
        for consumer, rows in wanted.items():
            move = self.live(consumer)
            if move and not rows:
                move["state"] = "ended"
                self.retired.add(move["migration"])
            elif move:
                move["destination"] = rows

    def claim(self, consumer, rows):
        if consumer in self.retired:
            raise Refusal("ConsumerRetired")
        if consumer in self.held:
            raise Refusal("AlreadyExists")
        self.put({consumer: rows})

    def release(self, consumer, *, forever):
        if consumer not in self.held and not forever:
            raise Refusal("ConsumerNotFound")
        if consumer in self.retired:
            return
        self.write({consumer: {}})
        if forever:
            self.retired.add(consumer)

    def swap(self, consumer, expected, rows):
        if consumer in self.retired:
            raise Refusal("ConsumerRetired")
        if consumer not in self.held:
            raise Refusal("ConsumerNotFound")
        if self.held[consumer] != expected:
            raise Refusal("GenerationConflict")
        self.write({consumer: rows})

    def begin(self, consumer, migration, rows):
        known = self.moves.get(migration)
        if known:
            if (known["instance"], known["asked"]) != (consumer, rows):
                raise Refusal("AlreadyExists")
            if known["state"] != "held":
                raise Refusal("InvalidTransition")
            return
        if self.live(consumer):
            raise Refusal("InUse")
        if consumer not in self.held:
            raise Refusal("ConsumerNotFound")
        source = self.held[consumer]
        self.put({consumer: rows, migration: source})
        self.moves[migration] = {
            "migration": migration,
            "instance": consumer,
            "state": "held",
            "source": source,
            "asked": rows,
            "destination": rows,
        }

    def end(self, migration, event):
        move = self.moves.get(migration)
        if not move:
            raise Refusal("MoveNotFound")
        final = {"confirm": "confirmed", "revert": "reverted", "abandon": "abandoned"}[event]
        if move["state"] == final or (move["state"], event) == ("ended", "abandon"):
            return
        if move["state"] != "held":
            raise Refusal("InvalidTransition")
        wanted = {migration: {}}
        if event == "revert":
            wanted[move["instance"]] = move["source"]
        elif event == "abandon":
            wanted[move["instance"]] = {}
        self.put(wanted)
        move["state"] = final
        self.retired.add(migration)


class LedgerMachine(RuleBasedStateMachine):
    """Every call goes to both; they agree on the answer and, after each step, on everything that can be read."""

    @initialize()
    def open(self):
        self.database = Database("sqlite://")
        self.names = ledger_worlds.create(self.database, {host: {"VCPU": CAPACITY} for host in HOSTS})
        self.ledger, self.model, self.number = AllocationLedger(self.database), Model(), 0

    def teardown(self):
        if hasattr(self, "database"):
            self.database.close()

    def real(self, rows):
        return {self.names[host]: {"VCPU": amount} for host, amount in rows.items()}

    def both(self, model_call, real_call):
        before = copy.deepcopy(self.model)
        try:
            model_call()
            expected = None
        except Refusal as refusal:
            self.model, expected = before, refusal.args[0]
        self.number += 1
        operation_id = f"op-{self.number}"
        try:
            real_call(operation_id)
            found = None
        except CloudcoreError as error:
            found = type(error).__name__
        assert found == expected
        if found is None:  # the same call again, as after a lost answer
            real_call(operation_id)

    @rule(consumer=consumers, rows=holdings)
    def claim(self, consumer, rows):
        self.both(
            lambda: self.model.claim(consumer, rows),
            lambda op: self.ledger.claim(uuid_of(consumer), self.real(rows), operation_id=op, **OWNER),
        )

    @rule(consumer=consumers, forever=st.sampled_from([False] * 9 + [True]))
    def release(self, consumer, forever):
        self.both(
            lambda: self.model.release(consumer, forever=forever),
            lambda op: self.ledger.release(uuid_of(consumer), forever=forever, operation_id=op),
        )

    @rule(one=consumers, other=consumers, rows=holdings, others=holdings | st.just({}))
    def replace(self, one, other, rows, others):
        wanted = {one: rows, other: others}
        real = {uuid_of(consumer): self.real(rows) for consumer, rows in wanted.items()}
        self.both(
            lambda: self.model.write(wanted),
            lambda op: self.ledger.replace(real, operation_id=op, **OWNER),
        )

    @rule(consumer=consumers, rows=holdings, guess=holdings | st.none())
    def swap(self, consumer, rows, guess):
        expected = guess or self.model.held.get(consumer) or {"h1": 1}
        self.both(
            lambda: self.model.swap(consumer, expected, rows),
            lambda op: self.ledger.swap(uuid_of(consumer), self.real(expected), self.real(rows), operation_id=op),
        )

    @rule(consumer=consumers, migration=migrations, rows=holdings)
    def begin(self, consumer, migration, rows):
        self.both(
            lambda: self.model.begin(consumer, migration, rows),
            lambda op: self.ledger.begin_move(uuid_of(consumer), uuid_of(migration), self.real(rows), operation_id=op),
        )

    @rule(migration=migrations, event=st.sampled_from(["confirm", "revert", "abandon"]))
    def end(self, migration, event):
        self.both(
            lambda: self.model.end(migration, event),
            lambda op: getattr(self.ledger, f"{event}_move")(uuid_of(migration), operation_id=op),
        )

    @rule(host=hosts, capacity=st.integers(1, 8))
    def edit_inventory(self, host, capacity):
        self.model.capacity[host] = capacity
        ledger_worlds.resize(self.database, self.names[host], "VCPU", capacity)

    @invariant()
    def they_agree(self):
        if not hasattr(self, "model"):
            return
        self.ledger.check()
        for consumer in (*CONSUMERS, *MIGRATIONS):
            assert self.ledger.allocations(uuid_of(consumer)) == self.real(self.model.held.get(consumer, {}))
        for host in HOSTS:
            assert self.ledger.usages(provider=self.names[host]) == {"VCPU": self.model.used(host)}
        for migration, move in self.model.moves.items():
            assert str(self.ledger.move(uuid_of(migration)).state) == move["state"]


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = hypothesis.settings(
    max_examples=max(20, hypothesis.settings().max_examples // 5), stateful_step_count=20, deadline=None
)
