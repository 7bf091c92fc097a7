"""The page of figures says what was measured, and nothing else."""

import json

import pytest

from bench import figures, harness
from bench.harness import Bench


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A folder with the file of a benchmark that kept some promises and broke others."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "SAMPLE_SECONDS", 1e-5)
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)
    monkeypatch.setattr(Bench, "_stop_servers", staticmethod(lambda: None))
    bench = Bench("listing")
    with pytest.raises(SystemExit), bench:  # noqa: PT012 - leaving it raises, since a promise is broken
        bench.compare("a page | of 50; a loop", lambda: 1, lambda: 1, must=1e-9, rounds=2, note="warm")
        bench.compare("a page of 1", lambda: 1, lambda: 1, must=1e9, rounds=2)
        bench.measure("first page", lambda: 1, at_most=1e-12, rounds=2)
        bench.record("memory, MB", ours=10, must=20, met=True)
        bench.curve("square", "hosts", {size: 1e-6 * size**2 for size in (1, 10, 100)}, at_most=1.5)
        bench.curve("rate", "callers", {1: 100.0, 4: 400.0}, unit="claims/s")
    return tmp_path


def test_every_row_and_every_broken_promise_stands_on_the_page(measured, tmp_path):
    kept = tmp_path / "kept"
    assert figures.collect(measured, kept) == ["listing"]
    areas = figures.read(kept)
    plots = figures.draw(areas, kept)
    names = [f"listing-{kind}.svg" for kind in ("ratios", "shares", "growth")]
    assert plots == figures.names_of(areas, kept) == {"listing": names}
    told = {"listing": {"first page": "Nothing is as fast."}}
    text = figures.page(areas, plots, told)
    assert "| a page \\| of 50<br><small>beside a loop; warm</small> |" in text
    assert "| memory | 10\N{NO-BREAK SPACE}MB | – | – | ≤\N{NO-BREAK SPACE}20\N{NO-BREAK SPACE}MB | yes |" in text
    assert "| square | hosts | 2.00 | 1 µs at 1 … 10 ms at 100 | ≤ 1.5 |" in text
    assert "| rate | callers | 1.00 | 100 claims/s at 1 … 400 claims/s at 4 | – |" in text
    assert "| [Listing](#listing) | 2 of 5 |" in text
    unmet = figures.missed(areas, told)
    assert len(unmet) == 3
    assert sum(line.endswith("| Nothing is as fast. |") for line in unmet) == 1
    assert all(line in text for line in unmet)
    assert areas[0]["machine"]["date"] in text


def test_the_same_files_give_the_same_bytes(measured, tmp_path):
    areas = figures.read(measured)
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        figures.draw(areas, tmp_path / name)
        drawn.append([path.read_bytes() for path in sorted((tmp_path / name).glob("*.svg"))])
    assert drawn[0] == drawn[1]


def test_the_page_is_the_one_that_its_files_make():
    """Nobody typed a number into it."""
    folder = figures.PAGE.with_suffix("")
    areas = figures.read(folder)
    assert figures.PAGE.read_text() == figures.page(areas, figures.names_of(areas, folder), figures.reasons())


def test_every_reason_is_one_of_a_row():
    assert figures.unknown_reasons(figures.read(figures.PAGE.with_suffix("")), figures.reasons()) == []


def test_a_reason_for_a_row_that_there_is_not_is_told(measured):
    told = {"listing": {"a page of 1": "", "a page of 2": ""}, "unmeasured": {"anything": ""}}
    assert figures.unknown_reasons(figures.read(measured), told) == ["listing: a page of 2"]


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, []),
        ({"date": "2026-01-01 00:00 UTC"}, []),
        ({"date": "2999-01-01 00:00 UTC"}, ["listing"]),
        ({"date": "2999-01-01 00:00 UTC", "quick": True}, []),
    ],
)
def test_only_what_is_newer_and_whole_is_taken_over(measured, tmp_path, change, taken):
    """One area alone may be measured anew; a file that lay about does not come back."""
    kept = tmp_path / "kept"
    figures.collect(measured, kept)
    content = json.loads((measured / "listing.json").read_text())
    content["machine"]["date"] = change.get("date", content["machine"]["date"])
    content["quick"] = change.get("quick", False)
    (measured / "listing.json").write_text(json.dumps(content))
    assert figures.collect(measured, kept) == taken
    assert figures.read(kept)[0]["quick"] is False


@pytest.mark.parametrize(
    ("row", "bound"),
    [
        ({"ours": 1, "ratio": None, "must": None, "met": None}, None),
        ({"ours": 800.0, "ratio": 0.4, "must": None, "met": None, "bound": "at least"}, None),
        ({"ours": 0.5, "ours_min": 0.4, "ratio": None, "must": 1, "met": True}, "at most"),
        ({"ours": 75.0, "ratio": None, "must": 60, "met": False}, "at most"),
        ({"ours": 432.0, "ratio": None, "must": 600, "met": False}, "at least"),
        ({"ours": 800.0, "ratio": None, "must": 600, "met": True}, "at least"),
        ({"ours": 1, "ratio": None, "must": 1, "met": True}, "at most"),
        ({"ours": 0.1, "ratio": 40.0, "must": 50, "met": False}, "ratio at least"),
        ({"ours": 900.0, "ratio": 4.0, "must": 500, "met": True}, "at least"),
        ({"ours": 1.4, "ratio": 200.0, "must": 1.5, "met": True, "note": "at most; warm"}, "at most"),
        ({"ours": 2.0, "ratio": 1.1, "must": 1.05, "met": False, "bound": "ratio at most"}, "ratio at most"),
    ],
)
def test_which_way_a_promise_binds(row, bound):
    assert harness.bound_of(row) == bound


def test_a_power_is_fitted():
    assert harness.power({1: 3.0, 10: 300.0, 100: 30_000.0}) == pytest.approx(2)
    assert harness.power({1: 5.0, 1000: 5.0}) == pytest.approx(0)


def test_the_file_tells_the_machine(measured):
    content = json.loads((measured / "listing.json").read_text())
    assert set(content["machine"]) == {"processor", "cores", "memory_gib", "system", "python", "date"}
