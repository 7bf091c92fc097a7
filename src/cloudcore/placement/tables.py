"""The placement tables: providers, inventories, traits, aggregates, consumers, allocations.

``inventories.used`` is the sum of the allocations of that provider and class, kept by the ledger in the transaction
that changes them; ``capacity`` is ``floor((total - reserved) * allocation_ratio)``, kept by whoever writes the
inventory. Capacity is granted by an UPDATE guarded with ``used + n <= capacity`` and by nothing else.

Ids of providers are never used twice, so that a cached id can be stale but never mean another provider.
"""

from __future__ import annotations

import sqlalchemy as sa

from cloudcore.database import Instant, Json, Text, Uuid, metadata, utc_now

__all__ = [
    "allocation_history",
    "allocations",
    "consumers",
    "custom_resource_classes",
    "custom_traits",
    "host_attempts",
    "host_group_members",
    "host_groups",
    "inventories",
    "moves",
    "provider_aggregates",
    "provider_change_slots",
    "provider_changes",
    "provider_generations",
    "provider_traits",
    "resource_providers",
]

_BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers only INTEGER keys by itself


def _index_of_the_few(column: str) -> sa.Index:
    """An index of the rows where *column* is set: most rows have nothing there and cost nothing where that is known."""
    chosen = sa.text(f"{column} IS NOT NULL")
    return sa.Index(None, column, sqlite_where=chosen, postgresql_where=chosen)


resource_providers: sa.Table = sa.Table(
    "resource_providers",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid(), nullable=False, unique=True),
    sa.Column("name", Text(200), nullable=False, unique=True),
    sa.Column("parent_id", _BigId, sa.ForeignKey("resource_providers.id"), index=True),
    sa.Column("root_id", _BigId, sa.ForeignKey("resource_providers.id"), index=True),
    sa.Column("generation", sa.BigInteger(), nullable=False),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("created_at", Instant(), nullable=False, server_default=utc_now()),
    sa.Column("updated_at", Instant(), nullable=False, server_default=utc_now()),
    sqlite_autoincrement=True,
)
"""``version`` is counted up by whoever builds on a row that stays as it is: a new child of it, a subtree that moves in
its tree. A lock would keep others away on one server; only a write does so on every node of a cluster."""

inventories: sa.Table = sa.Table(
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
    sqlite_with_rowid=False,
)

provider_generations: sa.Table = sa.Table(
    "provider_generations",
    metadata,
    sa.Column(
        "provider_id",
        _BigId,
        sa.ForeignKey("resource_providers.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("generation", sa.BigInteger(), nullable=False),
)
"""How Placement would count, where that is asked for: see ``storage/generations.py``."""

provider_traits: sa.Table = sa.Table(
    "provider_traits",
    metadata,
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("trait", Text(255), primary_key=True),
)

provider_aggregates: sa.Table = sa.Table(
    "provider_aggregates",
    metadata,
    sa.Column("provider_id", _BigId, sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("aggregate", Uuid(), primary_key=True),
)

custom_resource_classes: sa.Table = sa.Table(
    "custom_resource_classes",
    metadata,
    sa.Column("name", Text(255), primary_key=True),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
"""The register of custom classes; see ``name_register.py``."""

custom_traits: sa.Table = sa.Table(
    "custom_traits",
    metadata,
    sa.Column("name", Text(255), primary_key=True),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
"""The register of custom traits."""

consumers: sa.Table = sa.Table(
    "consumers",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid(), nullable=False, unique=True),
    sa.Column("project_id", Text(255), nullable=False, index=True),
    sa.Column("user_id", Text(255), nullable=False),
    sa.Column("consumer_type", Text(255)),
    sa.Column("generation", sa.BigInteger(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("expires_at", Instant()),
    sa.Column("retired_at", Instant()),
    _index_of_the_few("expires_at"),
    _index_of_the_few("retired_at"),
)
"""Who holds something, or (``retired_at`` set) who was released for ever: the unique uuid is what keeps a late claim or
a late rollback from bringing the dead back. ``expires_at`` is set while a claim is pending."""

allocations: sa.Table = sa.Table(
    "allocations",
    metadata,
    sa.Column("consumer_id", _BigId, sa.ForeignKey("consumers.id"), primary_key=True),
    sa.Column("provider_id", _BigId, primary_key=True),
    sa.Column("resource_class", Text(255), primary_key=True),
    sa.Column("amount", sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(
        ["provider_id", "resource_class"], ["inventories.provider_id", "inventories.resource_class"]
    ),
    sa.Index("ix_allocations_provider", "provider_id", "resource_class"),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sqlite_with_rowid=False,
)
"""Who holds how much. The provider is reached through the inventory: a foreign key of its own would make every claim
lock the provider's row after its inventories, the other way round from an edit of the provider."""

moves: sa.Table = sa.Table(
    "moves",
    metadata,
    sa.Column("migration", Uuid(), primary_key=True),
    sa.Column("instance", Uuid(), nullable=False, index=True),
    sa.Column("kind", Text(32), nullable=False),
    sa.Column("state", Text(32), nullable=False),
    sa.Column("source", Json(), nullable=False),
    sa.Column("destination", Json(), nullable=False),
    sa.Column("options", Json(), nullable=False),
    sa.Column("story", Json(), nullable=False),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Column("updated_at", Instant(), nullable=False),
    sa.Column("expires_at", Instant(), index=True),
)
"""One row for each migration, kept after its end: the final state is what refuses a late confirm or revert."""

provider_changes: sa.Table = sa.Table(
    "provider_changes",
    metadata,
    sa.Column("slot", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("provider_id", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("resource_class", Text(255), primary_key=True, server_default=""),
    sa.Column("used", sa.BigInteger()),
    sqlite_with_rowid=False,
)
"""Which providers changed, in an order that is safe to follow, and on SQLite what was in use then; see
``changes.py``."""

provider_change_slots: sa.Table = sa.Table(
    "provider_change_slots",
    metadata,
    sa.Column("slot", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger(), nullable=False),
    sa.Column("pruned", sa.BigInteger(), nullable=False),
)

allocation_history: sa.Table = sa.Table(
    "allocation_history",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("consumer", Uuid(), nullable=False),
    sa.Column("recorded_at", Instant(), nullable=False),
    sa.Column("event", Text(32), nullable=False),
    sa.Column("operation_id", Text(64), nullable=False),
    sa.Column("holdings", Json(), nullable=False),
    sa.Index(None, "consumer", "id"),
    sqlite_autoincrement=True,
)
"""What each consumer held after each change; append-only, old rows may be pruned."""

host_groups: sa.Table = sa.Table(
    "host_groups",
    metadata,
    sa.Column("uuid", Uuid(), primary_key=True),
    sa.Column("policy", Text(32), nullable=False),
    sa.Column("max_per_host", sa.Integer(), nullable=False),
    sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
"""One row for each group of instances; who places a member counts its version up first, which holds it on all nodes."""

host_group_members: sa.Table = sa.Table(
    "host_group_members",
    metadata,
    sa.Column("instance", Uuid(), primary_key=True),
    sa.Column("group_uuid", Uuid(), sa.ForeignKey("host_groups.uuid"), nullable=False, index=True),
    sqlite_with_rowid=False,
)
"""Which group an instance belongs to. Where it is, its allocations say."""

host_attempts: sa.Table = sa.Table(
    "host_attempts",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=True),
    sa.Column("instance", Uuid(), nullable=False, index=True),
    sa.Column("selection", Text(64), nullable=False),
    sa.Column("root", Uuid(), nullable=False),
    sa.Column("name", Text(200), nullable=False),
    sa.Column("outcome", Text(32), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("operation_id", Text(64), nullable=False),
    sa.Column("recorded_at", Instant(), nullable=False),
    sqlite_autoincrement=True,
)
"""Which hosts of a selection were tried, and what came of it; old rows may be pruned."""
