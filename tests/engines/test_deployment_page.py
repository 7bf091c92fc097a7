"""The table of what holds where names tests that there are."""

from __future__ import annotations

import re

from tests.services._host import REPOSITORY


def test_every_cell_names_a_test():
    page = (REPOSITORY / "docs" / "how-to" / "deployment.md").read_text()
    defined = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        defined.update(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    table = page.partition("## What holds where")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [set(re.findall(r"`(test_\w+)`", cell)) for row in rows for cell in row[1:]]
    assert len(rows) > 10
    assert {len(row) for row in rows} == {5}
    assert all(cells)
    assert set(re.findall(r"`(test_\w+)`", page)) - defined == set()


def test_every_row_lock_and_every_guard_is_listed():
    """A new `FOR UPDATE` or a new `version` wants a line in the list of what guards it on a cluster."""
    modules = {path.name: path.read_text() for path in (REPOSITORY / "src" / "cloudcore").rglob("*.py")}
    sources = "\n".join(modules.values())
    advisory = [name for name, text in modules.items() if re.search(r"\b(?i:get_lock|pg_advisory)", text)]
    assert advisory == ["table_creation.py"], "a lock by name holds on one node, or not behind a pooler"
    assert len(re.findall(r"with_for_update", sources)) <= 2, "on a cluster it holds nothing: see hold()"
    page = (REPOSITORY / "docs" / "reference" / "database.md").read_text()
    for table in ("resource_providers", "host_groups", "embedded_volumes", "directory_instances"):
        assert f"{table}.version" in page
