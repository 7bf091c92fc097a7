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
        bench.compare("a page | of 50", lambda: 1, lambda: 1, must=1e-9, rounds=2, note="warm")
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
    assert plots == figures.names_of(areas, kept) == {"listing": ["listing-ratios.svg", "listing-growth.svg"]}
    text = figures.page(areas, plots)
    assert "| a page \\| of 50 (warm) |" in text
    assert "| memory, MB | 10 | – | – | 20 | yes |" in text
    assert "| square | hosts | 2.00 | 1 µs at 1 … 10 ms at 100 |" in text
    assert "| rate | callers | 1.00 | 100 claims/s at 1 … 400 claims/s at 4 |" in text
    unmet = figures.missed(areas)
    assert len(unmet) == 3
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
    assert figures.PAGE.read_text() == figures.page(areas, figures.names_of(areas, folder))


def test_a_power_is_fitted():
    assert harness.power({1: 3.0, 10: 300.0, 100: 30_000.0}) == pytest.approx(2)
    assert harness.power({1: 5.0, 1000: 5.0}) == pytest.approx(0)


def test_the_file_tells_the_machine(measured):
    content = json.loads((measured / "listing.json").read_text())
    assert set(content["machine"]) == {"processor", "cores", "memory_gib", "system", "python", "date"}
