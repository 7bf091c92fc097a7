"""Small worlds for the ledger's tests, written straight into the tables."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from cloudcore.database import metadata
from cloudcore.placement import tables
from cloudcore.schema import schema_tables


def uuid_of(name: str | int) -> str:
    """A uuid that is the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(name)))


def create_tables(database) -> None:
    """Create the tables of placement."""
    metadata.create_all(database.engine, tables=schema_tables(["placement"]))


def empty(database) -> None:
    """Delete every row of every table of placement."""
    with database.write() as connection:
        connection.execute(sa.update(tables.resource_providers).values(parent_id=None, root_id=None))
        for table in reversed(schema_tables(["placement"])):
            connection.execute(sa.delete(table))


def create(database, providers: dict[str, dict[str, int | dict[str, int]]]) -> dict[str, str]:
    """Create tables and providers in a fresh database; see `add_providers`."""
    create_tables(database)
    return add_providers(database, providers)


def add_providers(database, providers) -> dict[str, str]:
    """Create providers: name → {class: total or inventory fields}; returns name → uuid."""
    names = {name: uuid_of(name) for name in providers}
    with database.write() as connection:
        for name, inventory in providers.items():
            connection.execute(sa.insert(tables.resource_providers).values(uuid=names[name], name=name, generation=0))
            number = provider_id(connection, names[name])
            for resource_class, given in inventory.items():
                fields = {"total": given} if isinstance(given, int) else given
                connection.execute(
                    sa.insert(tables.inventories).values(provider_id=number, **row(resource_class, fields))
                )
    return names


def provider_id(connection, uuid_: str) -> int:
    query = sa.select(tables.resource_providers.c.id).where(tables.resource_providers.c.uuid == uuid_)
    return connection.execute(query).scalar_one()


def consumer_id(connection, uuid_: str) -> int:
    query = sa.select(tables.consumers.c.id).where(tables.consumers.c.uuid == uuid_)
    return connection.execute(query).scalar_one()


def row(resource_class: str, fields: dict) -> dict:
    full = {
        "reserved": 0,
        "min_unit": 1,
        "max_unit": 2**31 - 1,
        "step_size": 1,
        "allocation_ratio": 1.0,
        **fields,
    }
    capacity = int((full["total"] - full["reserved"]) * full["allocation_ratio"])
    return {"resource_class": resource_class, "capacity": capacity, **full}


def resize(database, provider: str, resource_class: str, total: int) -> None:
    """Shrink or grow an inventory, as an edit of the provider would."""
    inventory = tables.inventories.c
    with database.write() as connection:
        number = provider_id(connection, provider)
        connection.execute(
            sa.update(tables.inventories)
            .where(inventory.provider_id == number, inventory.resource_class == resource_class)
            .values(total=total, capacity=total)
        )


def used(database, provider: str, resource_class: str) -> int:
    inventory = tables.inventories.c
    with database.read() as connection:
        number = provider_id(connection, provider)
        query = sa.select(inventory.used).where(
            inventory.provider_id == number, inventory.resource_class == resource_class
        )
        return connection.execute(query).scalar_one()


def overdue(database, consumer_or_migration: str) -> None:
    """Let the deadline of a pending claim or of a move pass."""
    from datetime import UTC, datetime

    past = datetime(2001, 1, 1, tzinfo=UTC)
    with database.write() as connection:
        move = sa.update(tables.moves).where(tables.moves.c.migration == consumer_or_migration)
        if not connection.execute(move.values(expires_at=past)).rowcount:
            claim = sa.update(tables.consumers).where(tables.consumers.c.uuid == consumer_or_migration)
            connection.execute(claim.values(expires_at=past))
