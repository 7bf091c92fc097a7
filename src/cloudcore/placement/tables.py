"""The placement tables: providers, inventories, traits, aggregates, consumers, allocations.

``inventories.used`` is the sum of the allocations of that provider and class, kept by the ledger in the transaction
that changes them; ``capacity`` is ``floor((total - reserved) * allocation_ratio)``, kept by whoever writes the
inventory. Capacity is granted by an UPDATE guarded with ``used + n <= capacity`` and by nothing else.
"""

from __future__ import annotations

import sqlalchemy as sa

from cloudcore.database import Instant, Text, Uuid, metadata

__all__ = [
    "allocations",
    "consumers",
    "inventories",
    "provider_aggregates",
    "provider_traits",
    "resource_providers",
]

_BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers only INTEGER keys by itself

resource_providers = sa.Table(
    "resource_providers",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid(), nullable=False, unique=True),
    sa.Column("name", Text(200), nullable=False, unique=True),
    sa.Column("parent_id", _BigId, sa.ForeignKey("resource_providers.id"), index=True),
    sa.Column("root_id", _BigId, sa.ForeignKey("resource_providers.id"), index=True),
    sa.Column("generation", sa.BigInteger(), nullable=False),
)

inventories = sa.Table(
    "inventories",
    metadata,
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("resource_class", Text(255), primary_key=True),
    sa.Column("total", sa.BigInteger(), nullable=False),
    sa.Column("reserved", sa.BigInteger(), nullable=False),
    sa.Column("min_unit", sa.BigInteger(), nullable=False),
    sa.Column("max_unit", sa.BigInteger(), nullable=False),
    sa.Column("step_size", sa.BigInteger(), nullable=False),
    sa.Column("allocation_ratio", sa.Double(), nullable=False),
    sa.Column("capacity", sa.BigInteger(), nullable=False),
    sa.Column("used", sa.BigInteger(), nullable=False, server_default="0"),
    sa.CheckConstraint("used >= 0", name="used_not_negative"),
)

provider_traits = sa.Table(
    "provider_traits",
    metadata,
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("trait", Text(255), primary_key=True),
)

provider_aggregates = sa.Table(
    "provider_aggregates",
    metadata,
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("aggregate", Uuid(), primary_key=True),
)

consumers = sa.Table(
    "consumers",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid(), nullable=False, unique=True),
    sa.Column("project_id", Text(255), nullable=False, index=True),
    sa.Column("user_id", Text(255), nullable=False),
    sa.Column("consumer_type", Text(255)),
    sa.Column("generation", sa.BigInteger(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("expires_at", Instant(), index=True),
)

allocations = sa.Table(
    "allocations",
    metadata,
    sa.Column("consumer_id", _BigId, sa.ForeignKey("consumers.id"), primary_key=True),
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("resource_class", Text(255), primary_key=True),
    sa.Column("amount", sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(
        ["provider_id", "resource_class"], ["inventories.provider_id", "inventories.resource_class"]
    ),
    sa.Index("ix_allocations_provider", "provider_id", "resource_class"),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
)
