"""The table of what holds where names tests that there are."""

from __future__ import annotations

import re

from tests.services._host import REPOSITORY


def _defined() -> set[str]:
    found: set[str] = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        found.update(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    return found


def test_every_cell_names_a_test():
    page = (REPOSITORY / "docs" / "how-to" / "deployment.md").read_text()
    table = page.partition("## What holds where")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [set(re.findall(r"`(test_\w+)`", cell)) for row in rows for cell in row[1:]]
    assert len(rows) > 10
    assert {len(row) for row in rows} == {5}
    assert all(cells)
    assert set(re.findall(r"`(test_\w+)`", page)) - _defined() == set()


def test_every_guard_names_the_test_that_misses_it():
    page = (REPOSITORY / "docs" / "reference" / "database.md").read_text().partition("## Locks that are writes")[2]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    shown = [set(re.findall(r"`(test_\w+)`", row[-1])) for row in rows]
    assert len(rows) > 10
    assert all(shown)
    assert set().union(*shown) - _defined() == set()


def test_every_row_lock_and_every_guard_is_listed():
    """A new `FOR UPDATE` or a new `version` wants a line in the list of what guards it on a cluster."""
    modules = {path.name: path.read_text() for path in (REPOSITORY / "src" / "cloudcore").rglob("*.py")}
    sources = "\n".join(modules.values())
    advisory = [name for name, text in modules.items() if re.search(r"\b(?i:get_lock|pg_advisory)", text)]
    assert advisory == ["table_creation.py"], "a lock by name holds on one node, or not behind a pooler"
    assert len(re.findall(r"with_for_update", sources)) <= 3, "on a cluster it holds nothing: see hold(), one of them"
    page = (REPOSITORY / "docs" / "reference" / "database.md").read_text()
    for table in ("resource_providers", "host_groups", "embedded_volumes", "directory_instances"):
        assert f"{table}.version" in page
