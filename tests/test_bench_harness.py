"""The benchmark harness: equality before time, turns, rows as promised."""

import json
import sys

import pytest

from bench import harness
from bench.harness import Bench, Peer, PeerFailed, Unequal

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import peer

calls = []

def numbers(count):
    calls.append(count)
    print("libraries chatter")
    return list(range(count))

def called():
    return len(calls)

def broken():
    raise RuntimeError("no such cell")

peer.serve(numbers=numbers, called=called, broken=broken)
"""


@pytest.fixture
def peer(tmp_path):
    script = tmp_path / "peer_script.py"
    script.write_text(SCRIPT)
    with Peer(sys.executable, script) as process:
        yield process


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)  # the heap of a long test run is large
    monkeypatch.setattr(Bench, "_stop_servers", staticmethod(lambda: None))
    return Bench("area")


def test_rows_are_written_as_promised(bench, peer, tmp_path, capsys):
    """Each row has work, ours, peer, ratio, must, met; the ratio is peer over ours."""
    with bench:
        bench.compare("range", lambda: list(range(10)), peer.call("numbers", count=10), must=1e-9, rounds=3)
        bench.measure("alone", lambda: None, rounds=2)
        bench.record("memory, MB", ours=10, must=20, met=True)
    rows = json.loads((tmp_path / "results" / "area.json").read_text())["rows"]
    assert all({"work", "ours", "peer", "ratio", "must", "met"} <= set(row) for row in rows)
    assert rows[0]["met"] is True
    assert rows[0]["ratio"] == pytest.approx(rows[0]["peer"] / rows[0]["ours"])
    assert rows[0]["ours_min"] <= rows[0]["ours"] <= rows[0]["ours_max"]
    assert "| range |" in capsys.readouterr().out


def test_unequal_answers_are_never_timed(bench, peer):
    """One call for the comparison, then no more."""
    with pytest.raises(Unequal, match="range"), bench:
        bench.compare("range", lambda: [1], peer.call("numbers", count=2))
    assert peer.run("called") == 1
    assert bench.rows == []


def test_a_promise_that_is_not_kept_fails_the_run(bench, peer):
    """The results are written all the same."""
    with pytest.raises(SystemExit), bench:
        bench.compare("range", lambda: list(range(9)), peer.call("numbers", count=9), must=1e9, rounds=1)
    assert bench.rows[0]["met"] is False


def test_number_and_preparation_of_works_with_an_effect(bench):
    """With number=1 each sample runs the work once, after its preparation."""
    ours, prepared = [], []
    with bench:
        bench.compare(
            "insert",
            lambda: ours.append(1),
            lambda: None,
            number=1,
            rounds=4,
            before_ours=lambda: prepared.append(1),
        )
    assert len(ours) == len(prepared) == 5


def test_the_peers_own_words_come_with_its_failure(peer):
    """Raised with its traceback, and the process goes on."""
    with pytest.raises(PeerFailed, match="no such cell"):
        peer.run("broken")
    assert peer.run("numbers", count=2) == [0, 1]
