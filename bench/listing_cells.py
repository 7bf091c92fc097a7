"""Cells for `bench_listing`: the same rows for us and for the peer, in databases of either schema."""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path

import sqlalchemy as sa

from cloudcore.listing.records import nova_tables
from cloudcore.listing.tables import create_cell_tables, instances


class SlowConnection(sqlite3.Connection):
    """A SQLite connection whose every statement first takes a while, as a distant server's would."""

    latency = 0.0

    def cursor(self, *_):
        return super().cursor(SlowCursor)


class SlowCursor(sqlite3.Cursor):
    def execute(self, *arguments):
        if SlowConnection.latency:
            time.sleep(SlowConnection.latency)
        return super().execute(*arguments)


def _as_nova(row: dict) -> dict:
    """A row of ours as Nova's table names it; its times are naive, in UTC."""
    at = row["created_at"].replace(tzinfo=None)
    kept = {name: value for name, value in row.items() if name not in {"flavor", "disk_gb"}}
    return {**kept, "root_gb": row["disk_gb"], "created_at": at, "updated_at": at, "launched_at": at, "deleted": 0}


def _analyse(engine: sa.Engine) -> None:
    """Let the database look at what it holds, as its own upkeep would in time."""
    mysql = engine.dialect.name in {"mysql", "mariadb"}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE TABLE instances" if mysql else "ANALYZE")


def own_cell(url: str, content: list[dict]) -> None:
    """A cell with cloudcore's own table."""
    engine = sa.create_engine(url)
    create_cell_tables(engine)
    with engine.begin() as connection:
        connection.execute(instances.insert(), content)
    _analyse(engine)
    engine.dispose()


def _insert(connection: sa.Connection, table: sa.Table, records: list[dict]) -> None:
    """Many rows, all with the same columns: by COPY where there is one."""
    if connection.dialect.name != "postgresql":
        connection.execute(table.insert(), records)
        return
    names = list(records[0])
    columns = ", ".join(f'"{name}"' for name in names)
    with (
        connection.connection.driver_connection.cursor() as cursor,
        cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy,
    ):
        for record in records:
            copy.write_row([record[name] for name in names])


def nova_cell(url: str, content: list[dict]) -> None:
    """Fill a migrated Nova cell: instances, an info cache, an extra and a pair of metadata for each."""
    engine = sa.create_engine(url)
    tables = {
        name: sa.Table(name, sa.MetaData(), autoload_with=engine, resolve_fks=False)
        for name in ("instance_info_caches", "instance_extra", "instance_metadata")
    }
    records = [
        {
            **row,
            "cleaned": 0,
            "ephemeral_gb": 0,
            "launch_index": 0,
            "progress": 0,
            "instance_type_id": 1,
            "root_device_name": "/dev/vda",
            "access_ip_v4": None,
        }
        for row in map(_as_nova, content)
    ]
    with engine.begin() as connection:
        _insert(connection, nova_tables.instances, records)
        for name, extra in (
            ("instance_info_caches", {"network_info": "[]"}),
            ("instance_extra", {}),
            ("instance_metadata", {"key": "role", "value": "web"}),
        ):
            _insert(
                connection,
                tables[name],
                [
                    {"instance_uuid": row["uuid"], "created_at": row["created_at"], "deleted": 0, **extra}
                    for row in records
                ],
            )
    _analyse(engine)
    engine.dispose()


def nova_api(url: str, cells: dict[str, tuple[str, list[dict]]]) -> None:
    """Fill a migrated Nova API database with the mappings."""
    engine = sa.create_engine(url)
    table = sa.Table("cell_mappings", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        for number, (name, (database, content)) in enumerate(cells.items(), 1):
            mapping = {
                "id": number,
                "uuid": str(uuid.UUID(int=number)),
                "name": name,
                "transport_url": "none:///",
                "database_connection": database.replace("+psycopg:", "+psycopg2:"),
                "disabled": False,
            }
            connection.execute(table.insert(), [mapping])
            _insert(
                connection,
                nova_tables.instance_mappings,
                [
                    {
                        "instance_uuid": row["uuid"],
                        "cell_id": number,
                        "project_id": row["project_id"],
                        "user_id": row["user_id"],
                        "queued_for_delete": False,
                        "created_at": row["created_at"].replace(tzinfo=None),
                    }
                    for row in content
                ],
            )
    engine.dispose()


def copies(template: Path, folder: Path, names: list[str]) -> list[Path]:
    """Copies of a SQLite file."""
    made = [folder / name for name in names]
    for path in made:
        path.write_bytes(template.read_bytes())
    return made


def copy_on_server(server, template: str, name: str) -> str:
    """A copy of an empty database under another name; its URL. On MariaDB it has no foreign keys."""
    source = template.rsplit("/", 1)[1].split("?")[0]
    if template.startswith("postgresql"):
        server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
        return server.url(name)
    server.execute(f"CREATE DATABASE {name}")
    for (table,) in server.execute(f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{source}'"):
        if not table.startswith("shadow_"):
            server.execute(f"CREATE TABLE {name}.{table} LIKE {source}.{table}")
    return server.url(name)


def grow(url: str, times: int) -> None:
    """Make the instances of a MariaDB cell so many times as many, each copy with a uuid and a time of its own."""
    engine = sa.create_engine(url)
    names = [column.name for column in nova_tables.instances.columns if column.name != "id"]
    copied = {"uuid": "uuid()", "created_at": "created_at + INTERVAL FLOOR(1 + RAND() * 86400) SECOND"}
    into, values = ", ".join(names), ", ".join(copied.get(name, name) for name in names)
    with engine.begin() as connection:
        most = connection.scalar(sa.text("SELECT MAX(id) FROM instances"))
        for _ in range(times - 1):
            connection.execute(
                sa.text(f"INSERT INTO instances ({into}) SELECT {values} FROM instances WHERE id <= {most}")
            )
    _analyse(engine)
    engine.dispose()
