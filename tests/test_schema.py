"""The tables are the same whether scripts create them or deployments upgrade to them, on all three databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cloudcore._failpoints import arm, disarm
from cloudcore.cli import main
from cloudcore.database import Database, metadata
from cloudcore.errors import InvalidArgument, SchemaMismatch
from cloudcore.listing import InstanceDirectory, create_cell_tables
from cloudcore.schema import (
    AREAS,
    VERSION_TABLE,
    SchemaState,
    check_schema,
    create_schema,
    schema_tables,
    upgrade_schema,
)
from tests.test_forking import forked


def described(database: Database) -> dict[str, Any]:
    """Tables with columns, keys, indexes and constraints, as the database itself tells them."""
    inspector = sa.inspect(database.engine)
    return {
        table: {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"], str(c.get("default")), getattr(c["type"], "collation", None))
                for c in inspector.get_columns(table)
            ],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(str(sorted(key.items(), key=str)) for key in inspector.get_foreign_keys(table)),
            "unique": sorted(str((u["name"], u["column_names"])) for u in inspector.get_unique_constraints(table)),
            "indexes": sorted(
                str(
                    (
                        i["name"],
                        i["column_names"],
                        i["unique"],
                        {k: str(v) for k, v in i.get("dialect_options", {}).items()},
                    )
                )
                for i in inspector.get_indexes(table)
            ),
            "checks": sorted(str(c["name"]) for c in inspector.get_check_constraints(table)),
        }
        for table in inspector.get_table_names()
        if table != VERSION_TABLE
    }


def test_create_and_upgrade_give_the_same_tables(new_database_url: Callable[[], str]) -> None:
    with Database(new_database_url()) as created, Database(new_database_url()) as upgraded:
        create_schema(created)
        state = upgrade_schema(upgraded)
        assert state.current, state.differences
        assert state.revision == state.head
        assert described(created) == described(upgraded)
        assert set(described(created)) == {table.name for table in schema_tables()}


def test_upgrade_and_create_can_be_repeated(database: Database) -> None:
    upgrade_schema(database)
    before = described(database)
    assert upgrade_schema(database).current
    create_schema(database)
    assert described(database) == before


def test_tables_of_create_schema_are_adopted_by_upgrade(database: Database) -> None:
    create_schema(database)
    assert check_schema(database).revision is None
    state = upgrade_schema(database)
    assert state.current
    assert state.revision == state.head


PARTS: dict[str, Callable[[Database], object]] = {
    **{area: partial(create_schema, areas=[area]) for area in AREAS},
    "a cell": lambda database: create_cell_tables(database.engine),
    "the directory": InstanceDirectory,
}


WHERE = [("sqlite", part) for part in PARTS] + [("postgresql", "the directory"), ("mariadb", "a cell")]


@pytest.mark.parametrize(("dialect", "part"), WHERE, indirect=["dialect"])
def test_tables_of_a_part_are_adopted_and_the_others_made(new_database_url: Callable[[], str], part: str) -> None:
    with Database(new_database_url()) as database:
        PARTS[part](database)
        made = described(database)
        assert not check_schema(database).current
        state = upgrade_schema(database)
        assert state.current
        assert state.revision == state.head
        assert made.items() <= described(database).items()


def test_part_that_differs_is_refused_before_the_others_are_made(database: Database) -> None:
    create_schema(database, areas=["listing"])
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE directory_routes ADD COLUMN colour INTEGER")
    before = described(database)
    with pytest.raises(SchemaMismatch, match=r"beyond this release column directory_routes\.colour\. Dump"):
        upgrade_schema(database)
    assert described(database) == before
    assert check_schema(database).revision is None


def test_foreign_tables_are_left_alone_and_wrong_ones_refused(sqlite_database: Database) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE users (id INTEGER PRIMARY KEY)")
    assert upgrade_schema(sqlite_database).current
    assert "users" in sa.inspect(sqlite_database.engine).get_table_names()


def test_tables_that_differ_are_refused_with_the_difference(sqlite_database: Database) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE operations (id INTEGER PRIMARY KEY)")
    with pytest.raises(SchemaMismatch, match="without a revision, and differ"):
        upgrade_schema(sqlite_database)
    assert sa.inspect(sqlite_database.engine).get_table_names() == ["operations"]


def test_an_unknown_revision_is_refused(sqlite_database: Database) -> None:
    upgrade_schema(sqlite_database)
    with sqlite_database.write() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = 'ffff'")
    assert not check_schema(sqlite_database).current
    assert main(["schema", "check", "--database", str(sqlite_database.engine.url)]) == 1
    with pytest.raises(SchemaMismatch, match="newer than this release"):
        upgrade_schema(sqlite_database)


def test_every_table_belongs_to_an_area() -> None:
    assert {table.name for table in schema_tables()} == set(metadata.tables)


def test_a_cell_gets_its_own_area_only(sqlite_database: Database) -> None:
    create_schema(sqlite_database, areas=["listing"])
    names = set(sa.inspect(sqlite_database.engine).get_table_names())
    assert "instances" in names
    assert "allocations" not in names


def test_an_unknown_area_is_refused_before_any_effect(sqlite_database: Database) -> None:
    with pytest.raises(InvalidArgument, match=f"'compute' is none of {', '.join(AREAS)}"):
        create_schema(sqlite_database, areas=["placement", "compute"])
    assert sa.inspect(sqlite_database.engine).get_table_names() == []


def test_processes_that_start_together_create_the_tables_once(new_database_url: Callable[[], str]) -> None:
    """As the workers of a server do at their first start: whoever looks while another creates waits for it."""
    for _ in range(2):
        url, together = new_database_url(), threading.Barrier(4)

        def start(url: str = url, together: threading.Barrier = together) -> None:
            with Database(url) as opened:
                together.wait(60)
                create_schema(opened)
                create_cell_tables(opened.engine)
                InstanceDirectory(opened)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(start) for _ in range(4)]:
                done.result()
        with Database(url) as opened:
            present = set(sa.inspect(opened.engine).get_table_names())
        assert {table.name for table in schema_tables()} <= present


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_upgrade_waits_for_another_that_is_under_way(new_database_url: Callable[[], str]) -> None:
    """Whose tables it does not see yet."""
    url, done = new_database_url(), []

    def second() -> None:
        done.append(upgrade_schema(url).current)

    thread = threading.Thread(target=second)

    def hold_open(_: str) -> None:
        if threading.current_thread() is not thread:
            disarm()
            thread.start()
            thread.join(1)

    arm("database.commit.before", hold_open)
    assert upgrade_schema(url).current
    thread.join()
    assert done == [True]


def test_child_upgrades_while_a_thread_of_its_parent_is_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alembic takes one command at a time; the parent's thread does not end in the child."""
    command = pytest.importorskip("alembic.command")
    begun, go_on, plain = threading.Event(), threading.Event(), command.upgrade

    def slow_in_the_thread(*arguments: object) -> None:
        if threading.current_thread() is thread:
            begun.set()
            assert go_on.wait(60)
        plain(*arguments)

    monkeypatch.setattr(command, "upgrade", slow_in_the_thread)
    thread = threading.Thread(target=upgrade_schema, args=[f"sqlite:///{tmp_path / 'parent.db'}"])
    thread.start()
    assert begun.wait(60)
    try:
        assert forked(lambda: upgrade_schema(f"sqlite:///{tmp_path / 'child.db'}").current) == "True"
    finally:
        go_on.set()
        thread.join()


def test_threads_upgrade_databases_of_their_own(tmp_path: Path) -> None:
    """Alembic keeps what it is about for the whole process."""
    urls, together = [f"sqlite:///{tmp_path}/{name}.db" for name in "abcd"], threading.Barrier(4)

    def start(url: str) -> SchemaState:
        together.wait(60)
        return upgrade_schema(url)

    with ThreadPoolExecutor(4) as pool:
        assert all(state.current for state in pool.map(start, urls))
