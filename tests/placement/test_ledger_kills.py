"""kill -9 at every failpoint of every operation, and again in the recovery.

Acknowledged is durable; interrupted is all or nothing; the same call with the same operation id finishes it, once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cloudcore.database import Database
from cloudcore.placement import AllocationLedger
from cloudcore.placement.ledger import claim_statements as ledger_claims
from tests.placement.ledger_jobs import TRIALS, Trial
from tests.placement.ledger_nursery import Nursery, job

NEVER = 10**6
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def url(ledger_database):
    return ledger_database.engine.url.render_as_string(hide_password=False)


def prepare(ledger: AllocationLedger, name: str, tag: str) -> Trial:
    trial = Trial(tag)
    trial.build(ledger.database)
    TRIALS[name][0](ledger, trial)
    return trial


ON_SERVERS = ("claim", "group", "group_again", "replace", "swap", "begin", "revert", "reshape")


def operations(dialect: str) -> list:
    """All of them on SQLite; on the servers those that write most, and the others with --long."""
    names = list(TRIALS) if dialect == "sqlite" else [name for name in TRIALS if name in ON_SERVERS]
    others = [name for name in TRIALS if name not in names]
    return [(dialect, name) for name in names] + [
        pytest.param(dialect, name, marks=pytest.mark.slow) for name in others
    ]


@pytest.mark.parametrize(
    ("dialect", "name"),
    [*operations("sqlite"), *operations("postgresql"), *operations("mariadb")],
    indirect=["dialect"],
)
def test_killed_at_every_failpoint(ledger_database: Database, url, nursery, name, request):
    """The kill is at the n-th point, for all n; on SQLite the recovery is killed at every second point too."""
    ledger = AllocationLedger(ledger_database)
    trial = prepare(ledger, name, f"{name}/whole")
    whole = nursery.run([job("trial", url, kill_at=NEVER, name=name, tag=trial.tag)])[0]
    assert whole.answer == "acknowledged"
    after = shape(trial, ledger)
    commits = sum(point.endswith(".before") for point in whole.passed)
    assert commits > 0
    last_commit = max(i for i, point in enumerate(whole.passed) if point.endswith((".before", ".after")))
    twice = ledger_database.dialect == "sqlite" or request.config.getoption("--long")
    chosen = list(range(len(whole.passed)))
    if not twice:  # a process is dearer where it has to connect: every fourth point and the last ones, all with --long
        chosen = sorted({*chosen[::4], *chosen[-2:]})
    at_once = 1 if name.startswith("expire") else 6  # an expiry would do the work of its neighbours
    for points in (chosen[first : first + at_once] for first in range(0, len(chosen), at_once)):
        trials = [prepare(ledger, name, f"{name}/{point}") for point in points]
        before = [shape(trial, ledger) for trial in trials]
        died = kill(nursery, url, name, trials, points)
        for point, trial, ended, old in zip(points, trials, died, before, strict=True):
            assert (ended.killed, ended.answer, len(ended.passed)) == (True, None, point + 1)
            found = shape(trial, ledger)
            if not ended.passed[-1].endswith(".after") and commits == 1:
                assert found == old, f"{name} killed at {ended.passed[-1]}: half done"
            if point == last_commit:
                assert found == after, f"{name}: committed, and lost"
        if twice:
            kill(nursery, url, name, trials, [point * 7 % 11 for point in points])
        for trial, ended in zip(trials, kill(nursery, url, name, trials, [NEVER] * len(trials)), strict=True):
            assert ended.answer == "acknowledged"
            assert shape(trial, ledger) == after, f"{name} killed somewhere in {points}, then repeated"
    ledger.check()


ON_SERVERS_ONLY = {
    "postgresql": {
        "ledger.begin.statement.after",
        "ledger.begin.statement.before",
        "ledger.bulk.statement.after",
        "ledger.bulk.statement.before",
        "ledger.claim.statement.after",
        "ledger.claim.statement.before",
    },
    "mariadb": {"ledger.block.after", "ledger.block.before", "ledger.group.lock"},
}


def test_no_failpoint_of_the_ledger_is_left_out(ledger_database, url, nursery, dialect):
    """The points are read from the source; together the trials pass every one: what SQLite has none of, a server."""
    folder = Path(ledger_claims.__file__).parent
    # those of host_groups are passed where groups are: by the battery of selections and by the forgetting of groups
    modules = [path for path in folder.glob("*.py") if path.name != "host_groups.py"]
    source = "".join(path.read_text(encoding="utf-8") for path in modules)
    points = set(re.findall(r'failpoint\("(ledger\.[^"]+)"\)', source))
    ledger = AllocationLedger(ledger_database)
    passed: set[str] = set()
    for name in TRIALS if dialect == "sqlite" else ON_SERVERS:
        trial = prepare(ledger, name, f"{name}/points")
        passed.update(nursery.run([job("trial", url, kill_at=NEVER, name=name, tag=trial.tag)])[0].passed)
    if dialect == "sqlite":
        assert points - passed == set().union(*ON_SERVERS_ONLY.values())
    else:
        assert passed >= ON_SERVERS_ONLY[dialect]


def kill(nursery, url, name, trials, points):
    """Run the operation of each trial in a process that dies at its point."""
    jobs = [job("trial", url, kill_at=n, name=name, tag=t.tag) for t, n in zip(trials, points, strict=True)]
    return nursery.run(jobs)


def shape(trial: Trial, ledger: AllocationLedger) -> str:
    """What can be seen of a trial, with its uuids replaced by names, so that trials compare."""
    text = json.dumps(trial.view(ledger))
    for name in ("h1", "h2", "a", "b", "m"):
        text = text.replace(getattr(trial, name), name)
    return json.dumps(json.loads(text), sort_keys=True)
