"""The listing tables: instances with their metadata and tags in every cell, and the directory in one place.

Nothing refers from one database to another. Every order that the library offers by itself is served by an index that
also holds the key column, so that a page is a range of an index whatever its depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles

from cloudcore.database import Instant, Text, Uuid, create_tables, metadata, utc_now

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

__all__ = [
    "ExactText",
    "create_cell_tables",
    "create_directory_tables",
    "directory_instances",
    "directory_routes",
    "instance_metadata",
    "instance_tags",
    "instances",
]


class _ExactVarchar(mysql.VARCHAR):
    """VARCHAR whose collation also tells trailing spaces apart; its name differs between MariaDB and MySQL."""

    cache_ok = True


@compiles(_ExactVarchar, "mysql", "mariadb")
def _exact_varchar(type_: _ExactVarchar, compiler: Any, **_: Any) -> str:
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    return f"VARCHAR({type_.length}) CHARACTER SET utf8mb4 COLLATE {collation}"


def ExactText(length: int = 255) -> sa.types.TypeEngine[str]:  # noqa: N802 - it is used as a type
    """Column type of text that queries sort by: ordered by code point, trailing spaces included, everywhere."""
    return (
        sa.String(length)
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
        .with_variant(_ExactVarchar(length), "mysql", "mariadb")
    )


instances: sa.Table = sa.Table(
    "instances",
    metadata,
    sa.Column("uuid", Uuid(), primary_key=True),
    sa.Column("project_id", ExactText(), nullable=False),
    sa.Column("user_id", ExactText()),
    sa.Column("display_name", ExactText()),
    sa.Column("description", ExactText()),
    sa.Column("hostname", ExactText()),
    sa.Column("host", ExactText()),
    sa.Column("node", ExactText()),
    sa.Column("availability_zone", ExactText()),
    sa.Column("vm_state", ExactText(32), nullable=False),
    sa.Column("task_state", ExactText(64)),
    sa.Column("power_state", sa.Integer()),
    sa.Column("flavor", ExactText()),
    sa.Column("image_ref", ExactText()),
    sa.Column("vcpus", sa.Integer()),
    sa.Column("memory_mb", sa.Integer()),
    sa.Column("disk_gb", sa.Integer()),
    sa.Column("locked", sa.Boolean(), nullable=False),
    sa.Column("hidden", sa.Boolean(), nullable=False),
    sa.Column("deleted", sa.Boolean(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("updated_at", Instant()),
    sa.Column("launched_at", Instant()),
    sa.Column("deleted_at", Instant()),
)
"""The instances of one cell."""

_i = instances.c
sa.Index("ix_instances_created", _i.deleted, _i.created_at.desc(), _i.uuid)
sa.Index("ix_instances_created_ascending", _i.deleted, _i.created_at, _i.uuid)
sa.Index("ix_instances_project", _i.project_id, _i.deleted, _i.created_at.desc(), _i.uuid)
sa.Index("ix_instances_host", _i.host, _i.deleted, _i.created_at.desc(), _i.uuid)
sa.Index("ix_instances_updated", _i.updated_at, _i.uuid)
sa.Index("ix_instances_name", _i.deleted, _i.display_name, _i.uuid)

instance_metadata: sa.Table = sa.Table(
    "instance_metadata",
    metadata,
    sa.Column("instance_uuid", Uuid(), sa.ForeignKey("instances.uuid", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", ExactText(), primary_key=True, info={"exact": True}),
    sa.Column("value", ExactText(), info={"exact": True}),
    sa.Index(None, "key", "value", mysql_length={"key": 64, "value": 64}),
)
"""Pairs that users attach to an instance."""

instance_tags: sa.Table = sa.Table(
    "instance_tags",
    metadata,
    sa.Column("instance_uuid", Uuid(), sa.ForeignKey("instances.uuid", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", ExactText(80), primary_key=True, info={"exact": True}),
    sa.Index(None, "tag"),
)
"""Words that users attach to an instance."""

directory_instances: sa.Table = sa.Table(
    "directory_instances",
    metadata,
    sa.Column("uuid", Uuid(), primary_key=True),
    sa.Column("cell", Text(64), nullable=False),
    sa.Column("moving_to", Text(64)),
    sa.Column("project_id", ExactText(), nullable=False),
    sa.Column("host", ExactText()),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("entered_at", Instant(), nullable=False, server_default=utc_now()),  # how old it is, by one clock
    sa.Column("deleted", sa.Boolean(), nullable=False),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Index(None, "cell", "created_at", "uuid"),
    sa.Index(None, "moving_to"),
)
"""Which cell owns an instance. *moving_to* is set from before a copy is made elsewhere until the original is gone."""

directory_routes: sa.Table = sa.Table(
    "directory_routes",
    metadata,
    sa.Column("kind", Text(16), primary_key=True),
    sa.Column("value", ExactText(), primary_key=True),
    sa.Column("cell", Text(64), primary_key=True),
    sa.Column("instances", sa.BigInteger(), nullable=False),
)
"""How many live instances of a tenant (kind ``tenant``) or host (``host``) a cell may hold: never too few."""


def create_cell_tables(engine: Engine | Connection) -> None:
    """Create the tables of a cell where they are missing."""
    create_tables(engine, [instances, instance_metadata, instance_tags])


def create_directory_tables(engine: Engine) -> None:
    """Create the directory's tables where they are missing."""
    create_tables(engine, [directory_instances, directory_routes])
