"""Connections cut around COMMIT: every operation takes effect exactly once, and its caller learns the truth.

The cut is a TCP reset in a proxy before the server; SQLite has no connection, there `test_ledger_kills` stands for it.
"""

from __future__ import annotations

import threading

import pytest

from cloudcore import _failpoints
from cloudcore.database import Database, RetryPolicy
from cloudcore.errors import CapacityExceeded, DatabaseUnavailable, OutcomeUnknown
from cloudcore.placement import AllocationLedger
from cloudcore.placement.ledger.group_commit import Ticket
from tests.faults import Proxy
from tests.placement.ledger_jobs import TRIALS, Trial, claim_tickets, new_claim
from tests.waiting import until

OWNER = {"project_id": "project", "user_id": "user"}
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True),
]
COMMIT = {"postgresql": b"COMMIT\x00", "mariadb": b"\x03COMMIT"}  # not READ COMMITTED, which is sent with BEGIN

GROUP = {"postgresql": b"WITH claims", "mariadb": COMMIT["mariadb"]}
ALONE_BEGINS = {"postgresql": "ledger.claim.statement.before", "mariadb": "ledger.block.before"}
ALONE = {"postgresql": b"WITH wanted", "mariadb": b"BEGIN NOT ATOMIC"}


def committing(dialect: str, name: str) -> bytes:
    """What is on the wire at the commit; claim and begin are statements that commit themselves."""
    return ALONE[dialect] if name in {"claim", "begin"} else COMMIT[dialect]


OPERATIONS = ("claim", "release", "replace", "swap", "begin", "confirm", "revert", "reshape", "settle")


@pytest.fixture
def proxied(ledger_database):
    """(proxy, ledger through it); the ledger of `ledger_database` goes straight to the server."""
    url = ledger_database.engine.url
    with Proxy(url.port) as proxy:
        through = url.set(port=proxy.port)
        with Database(through, retry=RetryPolicy(attempts=4, initial=0.001, maximum=0.01)) as database:
            yield proxy, AllocationLedger(database)


def prepare(ledger: AllocationLedger, name: str, tag: str) -> Trial:
    trial = Trial(tag)
    trial.build(ledger.database)
    TRIALS[name][0](ledger, trial)
    return trial


def reconnect(ledger: AllocationLedger) -> None:
    """Start from one fresh connection: no statement is prepared, so its text is on the wire; the set-up is over."""
    ledger.database.engine.dispose()
    with ledger.database.engine.connect():
        pass


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("when", ["cut_when", "cut_after"])
def test_cut_at_commit_takes_effect_once(ledger_database, proxied, dialect, name, when):
    """COMMIT does not arrive, or arrives and its answer is lost: the call finds out and ends as if nothing had been."""
    proxy, ledger = proxied
    direct = AllocationLedger(ledger_database)
    reference = prepare(direct, name, f"{name}/reference")
    TRIALS[name][1](direct, reference, "op-reference")
    trial = prepare(direct, name, f"{name}/cut")
    reconnect(ledger)
    getattr(proxy, when)(committing(dialect, name))
    result = TRIALS[name][1](ledger, trial, "op-cut")
    assert proxy.cuts == 1, "nothing was cut: the test tests nothing"
    assert plain(trial, direct) == plain(reference, direct)
    if name not in {"reshape", "replace"}:
        assert result.repeated == (when == "cut_after")
    ledger.check()


def plain(trial: Trial, ledger: AllocationLedger) -> str:
    return repr(sorted_deeply(trial.view(ledger), trial))


def sorted_deeply(value, trial: Trial):
    names = {getattr(trial, name): name for name in ("a", "b", "m", "h1", "h2")}
    if isinstance(value, dict):
        return sorted((names.get(key, key), sorted_deeply(inner, trial)) for key, inner in value.items())
    if isinstance(value, list):
        return [sorted_deeply(inner, trial) for inner in value]
    return value


def test_database_that_stays_away_leaves_the_outcome_unknown(ledger_database, proxied, dialect):
    """Neither a success nor a refusal is made up; the repeat, when the database is back, tells."""
    proxy, ledger = proxied
    trial = prepare(AllocationLedger(ledger_database), "claim", "away")
    reconnect(ledger)
    proxy.cut_after(committing(dialect, "claim"))
    proxy.refuse()  # the pool has its one connection; whoever needs another is refused
    with pytest.raises(OutcomeUnknown) as unknown:
        TRIALS["claim"][1](ledger, trial, "op-away")
    assert unknown.value.operation_id in {"op-away", None}
    proxy.accept()
    assert TRIALS["claim"][1](ledger, trial, "op-away").repeated
    ledger.check()


def test_cut_before_anything_was_sent_is_repeated(ledger_database, proxied):
    proxy, ledger = proxied
    trial = prepare(AllocationLedger(ledger_database), "claim", "before")
    ledger.usages()
    proxy.cut()
    assert TRIALS["claim"][1](ledger, trial, "op-before").allocations == trial.here
    proxy.refuse()
    proxy.cut()
    ledger.database.engine.dispose()
    with pytest.raises(DatabaseUnavailable):
        ledger.allocations(trial.a)
    proxy.accept()
    ledger.check()


@pytest.mark.parametrize("when", ["cut_when", "cut_after"])
def test_group_that_is_cut_at_commit_takes_effect_once(ledger_database, proxied, dialect, when):
    """The whole group is sent again: who was granted before hears so, who was left alone claims by itself."""
    proxy, ledger = proxied
    trial = prepare(AllocationLedger(ledger_database), "claim", f"whole group/{when}")
    wanted = [(f"{number:032x}", {trial.h1: {"VCPU": 1}}, f"{when}/{number}") for number in range(6)]
    tickets = [Ticket(new_claim(*one)) for one in wanted]
    reconnect(ledger)
    getattr(proxy, when)(GROUP[dialect])
    claim_tickets(ledger, tickets)
    assert proxy.cuts == 1, "nothing was cut: the test tests nothing"
    granted = [ticket.answer for ticket in tickets if ticket.error is None]
    assert [answer.repeated for answer in granted] == [when == "cut_after"] * 4
    assert [type(ticket.error) for ticket in tickets].count(CapacityExceeded) == 2
    assert ledger.usages(provider=trial.h1)["VCPU"] == 4
    ledger.check()


def test_group_that_is_cut_at_commit_gives_every_verdict(ledger_database, proxied, dialect):
    """All claims of a group share the lost answer; each learns its own outcome, and each takes effect once."""
    proxy, single = proxied
    trial = prepare(AllocationLedger(ledger_database), "claim", "group")
    ledger = AllocationLedger(single.database, group_commit=8)
    reconnect(ledger)
    outcomes = []

    def claim(number: int) -> None:
        try:
            outcomes.append(ledger.claim(f"{number:032x}", {trial.h1: {"VCPU": 1}}, **OWNER))
        except CapacityExceeded as error:
            outcomes.append(error)

    def hold(_: str) -> None:
        _failpoints.disarm()
        begun.set()
        until(lambda: len(ledger._group._waiting) == 7)

    begun = threading.Event()
    _failpoints.arm(ALONE_BEGINS[dialect], hold)  # the first claim is a group of its own
    proxy.cut_after(GROUP[dialect])
    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    refused = sum(isinstance(outcome, CapacityExceeded) for outcome in outcomes)
    assert (len(outcomes), refused, proxy.cuts) == (8, 4, 1)
    assert ledger.usages(provider=trial.h1)["VCPU"] == 4
    ledger.check()
