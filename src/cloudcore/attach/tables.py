"""The attachment tables: the journal of legs, their stories, the leases that serialise work, and embedded volumes.

``attachment_legs`` has one row for each time that an instance has, had or is about to have a volume on a host: written
before the first side effect, never deleted by the work itself. Two nullable unique keys decide what may be there at
once (NULLs do not collide on any of the databases):

* ``consumer_key`` = volume/instance/role: an instance has a volume once, plus once while it moves;
* ``exclusive_key`` = volume: an exclusive volume has one instance. Multi-attach volumes and second legs have NULL.

Both become NULL when the leg is absent. Nothing here holds connection information or a connector.
"""

from __future__ import annotations

import sqlalchemy as sa

from cloudcore.database import Instant, Json, Text, Uuid, metadata

__all__ = [
    "attachment_events",
    "attachment_legs",
    "attachment_locks",
    "attachment_moves",
    "embedded_attachments",
    "embedded_snapshots",
    "embedded_volumes",
]

attachment_legs: sa.Table = sa.Table(
    "attachment_legs",
    metadata,
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("volume_id", Uuid(), nullable=False, index=True),
    sa.Column("instance_id", Uuid(), nullable=False, index=True),
    sa.Column("role", Text(8), nullable=False),
    sa.Column("host", Text(255)),
    sa.Column("state", Text(32), nullable=False, index=True),
    sa.Column("mode", Text(2), nullable=False),
    sa.Column("service_id", Uuid(), unique=True),
    sa.Column("consumer_key", Text(90), unique=True),
    sa.Column("exclusive_key", Uuid(), unique=True),
    sa.Column("operation_id", Text(64), unique=True),
    sa.Column("fingerprint", Text(64)),
    sa.Column("version", sa.Integer(), nullable=False),
    sa.Column("settings", Json(), nullable=False),
    sa.Column("device", Json()),
    sa.Column("when_gone", Text(8)),
    sa.Column("note", Text(1000)),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("updated_at", Instant(), nullable=False),
)

attachment_events: sa.Table = sa.Table(
    "attachment_events",
    metadata,
    sa.Column("attachment_id", Uuid(), sa.ForeignKey("attachment_legs.id"), primary_key=True),
    sa.Column("version", sa.Integer(), primary_key=True),
    sa.Column("event", Text(32), nullable=False),
    sa.Column("state", Text(32), nullable=False),
    sa.Column("note", Text(1000)),
    sa.Column("at", Instant(), nullable=False),
)

attachment_locks: sa.Table = sa.Table(
    "attachment_locks",
    metadata,
    sa.Column("name", Text(255), primary_key=True),
    sa.Column("owner", Text(200), nullable=False),
    sa.Column("expires", sa.Double(), nullable=False),  # seconds since 1970, by the database's clock
)

attachment_moves: sa.Table = sa.Table(
    "attachment_moves",
    metadata,
    sa.Column("instance_id", Uuid(), primary_key=True),
    sa.Column("kind", Text(16), nullable=False),
    sa.Column("phase", Text(16), nullable=False),
    sa.Column("source", Text(255), nullable=False),
    sa.Column("destination", Text(255)),
    sa.Column("note", Text(1000)),
    sa.Column("created_at", Instant(), nullable=False),
)

embedded_volumes: sa.Table = sa.Table(
    "embedded_volumes",
    metadata,
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("name", Text(255), nullable=False),
    sa.Column("status", Text(32), nullable=False),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("size", sa.BigInteger(), nullable=False),
    sa.Column("settings", Json(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
)

embedded_attachments: sa.Table = sa.Table(
    "embedded_attachments",
    metadata,
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("volume_id", Uuid(), sa.ForeignKey("embedded_volumes.id"), nullable=False, index=True),
    sa.Column("instance_id", Uuid(), index=True),
    sa.Column("status", Text(32), nullable=False),
    sa.Column("mode", Text(2), nullable=False),
    sa.Column("connector", Json()),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("attached_at", Instant()),
)

embedded_snapshots: sa.Table = sa.Table(
    "embedded_snapshots",
    metadata,
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("volume_id", Uuid(), sa.ForeignKey("embedded_volumes.id"), nullable=False),
    sa.Column("name", Text(255), nullable=False),
    sa.Column("size", sa.BigInteger(), nullable=False),
    sa.UniqueConstraint("volume_id", "name"),
)
