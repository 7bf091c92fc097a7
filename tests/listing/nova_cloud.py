"""Nova databases made by Nova 34's own migrations and filled by hand, as SQL: no row passes through Nova's objects."""

from __future__ import annotations

import datetime as dt
import random
import shutil
import uuid

import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.listing.records import nova_tables

EPOCH = dt.datetime(2026, 1, 1)  # naive UTC, as Nova stores it
CELL0 = "00000000-0000-0000-0000-000000000000"


def nova_url(url: str) -> str:
    """The URL as Nova's own configuration has it: with the drivers in its environment."""
    return url.replace("postgresql+psycopg://", "postgresql+psycopg2://")


def instance(rng: random.Random, number: int, **values):
    """One row of `instances`."""
    created = EPOCH + dt.timedelta(seconds=rng.randrange(40))
    row = {
        "uuid": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "created_at": created,
        "updated_at": rng.choice([None, created + dt.timedelta(seconds=5)]),
        "deleted": 0,
        "hidden": rng.choice([None, False]),
        "project_id": f"project-{rng.randrange(3)}",
        "user_id": "user",
        "display_name": rng.choice(["web", "Web", "db-1", "db-10", "ä", None]),
        "hostname": f"vm-{number}",
        "host": f"host-{rng.randrange(4)}",
        "vm_state": rng.choice(["active", "stopped", "error"]),
        "task_state": rng.choice([None, None, "deleting", "spawning"]),
        "launched_at": rng.choice([None, created]),
        "locked": False,
        "locked_by": rng.choice([None, "owner", "admin"]),
        "access_ip_v4": rng.choice([None, "10.0.0.9", "10.0.0.10", "9.0.0.1"]),
        "memory_mb": rng.choice([512, 2048]),
        "power_state": 1,
        "cleaned": 0,
    }
    row.update(values)
    return row


def insert(engine: sa.Engine, table: str, rows: list[dict]) -> None:
    """Insert rows; their columns are reflected."""
    if rows:
        reflected = sa.Table(table, sa.MetaData(), autoload_with=engine)
        with engine.begin() as connection:
            for row in rows:
                connection.execute(reflected.insert().values(**row))


def _migrate_cells(peer, urls: list[str]) -> None:
    """Run Nova's migrations once for all SQLite files, whose result is copied, and once on each server's database."""
    files = [url.removeprefix("sqlite:///") for url in urls if url.startswith("sqlite")]
    peer.run("migrate", urls=[nova_url(url) for url in urls if not url.startswith("sqlite")], kind="main")
    if files:
        peer.run("migrate", urls=[f"sqlite:///{files[0]}"], kind="main")
        for copy in files[1:]:
            shutil.copy(files[0], copy)


class NovaCloud:
    """The API database and its cells.

    Args:
        peer: A process in Nova's environment (`bench/peer_nova.py`).
        api_url: An empty database.
        cell_urls: Empty databases by cell name.
    """

    def __init__(self, peer, api_url: str, cell_urls: dict[str, str], migrate: bool = True) -> None:
        if migrate:
            peer.run("migrate", urls=[nova_url(api_url)], kind="api")
            _migrate_cells(peer, list(cell_urls.values()))
        self.api_url, self.cell_urls = api_url, cell_urls
        self.api = open_engine(api_url)
        self.engines = {name: open_engine(url) for name, url in cell_urls.items()}
        self.ids: dict[str, int] = {}
        for number, (name, url) in enumerate(cell_urls.items()):
            insert(
                self.api,
                "cell_mappings",
                [
                    {
                        "uuid": CELL0 if name == "cell0" else str(uuid.UUID(int=number + 1)),
                        "name": name,
                        "transport_url": "none:///",
                        "database_connection": nova_url(url),
                        "disabled": False,
                    }
                ],
            )
            with self.api.connect() as connection:
                mapping = nova_tables.cell_mappings
                self.ids[name] = connection.scalar(sa.select(mapping.c.id).where(mapping.c.name == name))

    def add(self, cell: str, rows: list[dict], mapped: bool = True) -> list[dict]:
        """Put instances into a cell and map them."""
        insert(self.engines[cell], "instances", rows)
        if mapped:
            insert(
                self.api,
                "instance_mappings",
                [
                    {
                        "instance_uuid": row["uuid"],
                        "cell_id": self.ids[cell],
                        "project_id": row["project_id"],
                        "created_at": row["created_at"],
                        "queued_for_delete": False,
                    }
                    for row in rows
                ],
            )
        return rows

    def close(self) -> None:
        for engine in (self.api, *self.engines.values()):
            engine.dispose()
