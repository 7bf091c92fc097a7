"""The how-to page of each database: its blocks run on the real server, at whose URL they then are."""

from __future__ import annotations

import re

import pytest

from cloudcore import Database, PlacementTree, create_schema
from tests.services._host import REPOSITORY

BLOCK = re.compile(r"^```python no-run\n(.*?)^```", re.MULTILINE | re.DOTALL)
URL = re.compile(r'"(?:postgresql|mysql)://[^"]*"')


@pytest.mark.parametrize(
    ("dialect", "page"),
    [("postgresql", "postgresql"), ("mariadb", "mariadb"), ("galera", "galera"), ("pgbouncer", "pgbouncer")],
    indirect=["dialect"],
)
def test_blocks_run_on_the_server_they_are_about(dialect, page, database_url):
    create_schema(database_url)
    blocks = BLOCK.findall((REPOSITORY / "docs" / "how-to" / f"{page}.md").read_text())
    names: dict = {}
    for block in blocks:
        assert URL.search(block)
        exec(URL.sub(repr(database_url), block), names)
        for made in names.values():
            if isinstance(made, Database | PlacementTree):
                made.close()
    assert blocks
