"""The tables of the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

from cloudcore.database import Instant, Json, Text, Uuid, utc_now
from cloudcore.listing.tables import ExactText

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "allocation_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("consumer", Uuid(), nullable=False),
        sa.Column("recorded_at", Instant(), nullable=False),
        sa.Column("event", Text(32), nullable=False),
        sa.Column("operation_id", Text(64), nullable=False),
        sa.Column("holdings", Json(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allocation_history")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_allocation_history_consumer_id"), "allocation_history", ["consumer", "id"], unique=False)
    op.create_table(
        "attachment_legs",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("volume_id", Uuid(), nullable=False),
        sa.Column("instance_id", Uuid(), nullable=False),
        sa.Column("role", Text(8), nullable=False),
        sa.Column("host", Text(255), nullable=True),
        sa.Column("state", Text(32), nullable=False),
        sa.Column("mode", Text(2), nullable=False),
        sa.Column("service_id", Uuid(), nullable=True),
        sa.Column("consumer_key", Text(90), nullable=True),
        sa.Column("exclusive_key", Uuid(), nullable=True),
        sa.Column("operation_id", Text(64), nullable=True),
        sa.Column("fingerprint", Text(64), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("settings", Json(), nullable=False),
        sa.Column("device", Json(), nullable=True),
        sa.Column("when_gone", Text(length=8), nullable=True),
        sa.Column("note", Text(1000), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachment_legs")),
        sa.UniqueConstraint("consumer_key", name=op.f("uq_attachment_legs_consumer_key")),
        sa.UniqueConstraint("exclusive_key", name=op.f("uq_attachment_legs_exclusive_key")),
        sa.UniqueConstraint("operation_id", name=op.f("uq_attachment_legs_operation_id")),
        sa.UniqueConstraint("service_id", name=op.f("uq_attachment_legs_service_id")),
    )
    op.create_index(op.f("ix_attachment_legs_instance_id"), "attachment_legs", ["instance_id"], unique=False)
    op.create_index(op.f("ix_attachment_legs_state"), "attachment_legs", ["state"], unique=False)
    op.create_index(op.f("ix_attachment_legs_volume_id"), "attachment_legs", ["volume_id"], unique=False)
    op.create_table(
        "attachment_locks",
        sa.Column("name", Text(255), nullable=False),
        sa.Column("owner", Text(200), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_attachment_locks")),
    )
    op.create_table(
        "attachment_moves",
        sa.Column("instance_id", Uuid(), nullable=False),
        sa.Column("kind", Text(16), nullable=False),
        sa.Column("phase", Text(16), nullable=False),
        sa.Column("source", Text(255), nullable=False),
        sa.Column("destination", Text(255), nullable=True),
        sa.Column("note", Text(1000), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_attachment_moves")),
    )
    op.create_table(
        "consumers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("uuid", Uuid(), nullable=False),
        sa.Column("project_id", Text(255), nullable=False),
        sa.Column("user_id", Text(255), nullable=False),
        sa.Column("consumer_type", Text(255), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("retired_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consumers")),
        sa.UniqueConstraint("uuid", name=op.f("uq_consumers_uuid")),
    )
    op.create_index(
        op.f("ix_consumers_expires_at"),
        "consumers",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("expires_at IS NOT NULL"),
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_consumers_project_id"), "consumers", ["project_id"], unique=False)
    op.create_index(
        op.f("ix_consumers_retired_at"),
        "consumers",
        ["retired_at"],
        unique=False,
        sqlite_where=sa.text("retired_at IS NOT NULL"),
        postgresql_where=sa.text("retired_at IS NOT NULL"),
    )
    op.create_table(
        "directory_instances",
        sa.Column("uuid", Uuid(), nullable=False),
        sa.Column("cell", Text(64), nullable=False),
        sa.Column("moving_to", Text(64), nullable=True),
        sa.Column("project_id", ExactText(255), nullable=False),
        sa.Column("host", ExactText(255), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("entered_at", Instant(), server_default=utc_now(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_directory_instances")),
    )
    op.create_index(
        op.f("ix_directory_instances_cell_created_at_uuid"),
        "directory_instances",
        ["cell", "created_at", "uuid"],
        unique=False,
    )
    op.create_index(op.f("ix_directory_instances_moving_to"), "directory_instances", ["moving_to"], unique=False)
    op.create_table(
        "directory_routes",
        sa.Column("kind", Text(16), nullable=False),
        sa.Column("value", ExactText(255), nullable=False),
        sa.Column("cell", Text(64), nullable=False),
        sa.Column("instances", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "value", "cell", name=op.f("pk_directory_routes")),
    )
    op.create_table(
        "embedded_volumes",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("name", Text(255), nullable=False),
        sa.Column("status", Text(32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("settings", Json(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedded_volumes")),
    )
    op.create_table(
        "host_attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("instance", Uuid(), nullable=False),
        sa.Column("selection", Text(64), nullable=False),
        sa.Column("root", Uuid(), nullable=False),
        sa.Column("name", Text(200), nullable=False),
        sa.Column("outcome", Text(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("operation_id", Text(64), nullable=False),
        sa.Column("recorded_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host_attempts")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_host_attempts_instance"), "host_attempts", ["instance"], unique=False)
    op.create_table(
        "host_groups",
        sa.Column("uuid", Uuid(), nullable=False),
        sa.Column("policy", Text(32), nullable=False),
        sa.Column("max_per_host", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_host_groups")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "instances",
        sa.Column("uuid", Uuid(), nullable=False),
        sa.Column("project_id", ExactText(255), nullable=False),
        sa.Column("user_id", ExactText(255), nullable=True),
        sa.Column("display_name", ExactText(255), nullable=True),
        sa.Column("description", ExactText(255), nullable=True),
        sa.Column("hostname", ExactText(255), nullable=True),
        sa.Column("host", ExactText(255), nullable=True),
        sa.Column("node", ExactText(255), nullable=True),
        sa.Column("availability_zone", ExactText(255), nullable=True),
        sa.Column("vm_state", ExactText(32), nullable=False),
        sa.Column("task_state", ExactText(64), nullable=True),
        sa.Column("power_state", sa.Integer(), nullable=True),
        sa.Column("flavor", ExactText(255), nullable=True),
        sa.Column("image_ref", ExactText(255), nullable=True),
        sa.Column("vcpus", sa.Integer(), nullable=True),
        sa.Column("memory_mb", sa.Integer(), nullable=True),
        sa.Column("disk_gb", sa.Integer(), nullable=True),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=True),
        sa.Column("launched_at", Instant(), nullable=True),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_instances")),
    )
    op.create_index(
        "ix_instances_created", "instances", ["deleted", sa.literal_column("created_at DESC"), "uuid"], unique=False
    )
    op.create_index("ix_instances_created_ascending", "instances", ["deleted", "created_at", "uuid"], unique=False)
    op.create_index(
        "ix_instances_host",
        "instances",
        ["host", "deleted", sa.literal_column("created_at DESC"), "uuid"],
        unique=False,
    )
    op.create_index("ix_instances_name", "instances", ["deleted", "display_name", "uuid"], unique=False)
    op.create_index(
        "ix_instances_project",
        "instances",
        ["project_id", "deleted", sa.literal_column("created_at DESC"), "uuid"],
        unique=False,
    )
    op.create_index("ix_instances_updated", "instances", ["updated_at", "uuid"], unique=False)
    op.create_table(
        "moves",
        sa.Column("migration", Uuid(), nullable=False),
        sa.Column("instance", Uuid(), nullable=False),
        sa.Column("kind", Text(32), nullable=False),
        sa.Column("state", Text(32), nullable=False),
        sa.Column("source", Json(), nullable=False),
        sa.Column("destination", Json(), nullable=False),
        sa.Column("options", Json(), nullable=False),
        sa.Column("story", Json(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("migration", name=op.f("pk_moves")),
    )
    op.create_index(op.f("ix_moves_expires_at"), "moves", ["expires_at"], unique=False)
    op.create_index(op.f("ix_moves_instance"), "moves", ["instance"], unique=False)
    op.create_table(
        "operations",
        sa.Column("id", Text(64), nullable=False),
        sa.Column("name", Text(64), nullable=False),
        sa.Column("fingerprint", Text(64), nullable=False),
        sa.Column(
            "result", sa.Text().with_variant(LONGTEXT(), "mariadb").with_variant(LONGTEXT(), "mysql"), nullable=True
        ),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_operations_created_at"), "operations", ["created_at"], unique=False)
    op.create_table(
        "provider_change_slots",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("pruned", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slot", name=op.f("pk_provider_change_slots")),
    )
    op.create_table(
        "provider_changes",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("provider_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("resource_class", Text(255), server_default="", nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("slot", "position", "provider_id", "resource_class", name=op.f("pk_provider_changes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "custom_resource_classes",
        sa.Column("name", Text(255), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_custom_resource_classes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "custom_traits",
        sa.Column("name", Text(255), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_custom_traits")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "resource_providers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("uuid", Uuid(), nullable=False),
        sa.Column("name", Text(200), nullable=False),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("root_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("created_at", Instant(), server_default=utc_now(), nullable=False),
        sa.Column("updated_at", Instant(), server_default=utc_now(), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["resource_providers.id"], name=op.f("fk_resource_providers_parent_id")),
        sa.ForeignKeyConstraint(["root_id"], ["resource_providers.id"], name=op.f("fk_resource_providers_root_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_resource_providers")),
        sa.UniqueConstraint("name", name=op.f("uq_resource_providers_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_resource_providers_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_resource_providers_parent_id"), "resource_providers", ["parent_id"], unique=False)
    op.create_index(op.f("ix_resource_providers_root_id"), "resource_providers", ["root_id"], unique=False)
    op.create_table(
        "attachment_events",
        sa.Column("attachment_id", Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("event", Text(32), nullable=False),
        sa.Column("state", Text(32), nullable=False),
        sa.Column("note", Text(1000), nullable=True),
        sa.Column("at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attachment_id"], ["attachment_legs.id"], name=op.f("fk_attachment_events_attachment_id")
        ),
        sa.PrimaryKeyConstraint("attachment_id", "version", name=op.f("pk_attachment_events")),
    )
    op.create_table(
        "embedded_attachments",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("volume_id", Uuid(), nullable=False),
        sa.Column("instance_id", Uuid(), nullable=True),
        sa.Column("status", Text(32), nullable=False),
        sa.Column("mode", Text(2), nullable=False),
        sa.Column("connector", Json(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("attached_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["volume_id"], ["embedded_volumes.id"], name=op.f("fk_embedded_attachments_volume_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedded_attachments")),
    )
    op.create_index(op.f("ix_embedded_attachments_instance_id"), "embedded_attachments", ["instance_id"], unique=False)
    op.create_index(op.f("ix_embedded_attachments_volume_id"), "embedded_attachments", ["volume_id"], unique=False)
    op.create_table(
        "embedded_snapshots",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("volume_id", Uuid(), nullable=False),
        sa.Column("name", Text(255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["volume_id"], ["embedded_volumes.id"], name=op.f("fk_embedded_snapshots_volume_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedded_snapshots")),
        sa.UniqueConstraint("volume_id", "name", name=op.f("uq_embedded_snapshots_volume_id_name")),
    )
    op.create_table(
        "host_group_members",
        sa.Column("instance", Uuid(), nullable=False),
        sa.Column("group_uuid", Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["group_uuid"], ["host_groups.uuid"], name=op.f("fk_host_group_members_group_uuid")),
        sa.PrimaryKeyConstraint("instance", name=op.f("pk_host_group_members")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_host_group_members_group_uuid"), "host_group_members", ["group_uuid"], unique=False)
    op.create_table(
        "instance_metadata",
        sa.Column("instance_uuid", Uuid(), nullable=False),
        sa.Column("key", ExactText(255), nullable=False),
        sa.Column("value", ExactText(255), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_instance_metadata_instance_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_uuid", "key", name=op.f("pk_instance_metadata")),
    )
    op.create_index(
        op.f("ix_instance_metadata_key_value"),
        "instance_metadata",
        ["key", "value"],
        unique=False,
        mysql_length={"key": 64, "value": 64},
    )
    op.create_table(
        "instance_tags",
        sa.Column("instance_uuid", Uuid(), nullable=False),
        sa.Column("tag", ExactText(80), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_instance_tags_instance_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_uuid", "tag", name=op.f("pk_instance_tags")),
    )
    op.create_index(op.f("ix_instance_tags_tag"), "instance_tags", ["tag"], unique=False)
    op.create_table(
        "inventories",
        sa.Column("provider_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("resource_class", Text(255), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("min_unit", sa.BigInteger(), nullable=False),
        sa.Column("max_unit", sa.BigInteger(), nullable=False),
        sa.Column("step_size", sa.BigInteger(), nullable=False),
        sa.Column("allocation_ratio", sa.Double(), nullable=False),
        sa.Column("capacity", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("used >= 0", name=op.f("ck_inventories_used_not_negative")),
        sa.ForeignKeyConstraint(["provider_id"], ["resource_providers.id"], name=op.f("fk_inventories_provider_id")),
        sa.PrimaryKeyConstraint("provider_id", "resource_class", name=op.f("pk_inventories")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "provider_aggregates",
        sa.Column("provider_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("aggregate", Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"], ["resource_providers.id"], name=op.f("fk_provider_aggregates_provider_id")
        ),
        sa.PrimaryKeyConstraint("provider_id", "aggregate", name=op.f("pk_provider_aggregates")),
    )
    op.create_table(
        "provider_generations",
        sa.Column(
            "provider_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["resource_providers.id"],
            name=op.f("fk_provider_generations_provider_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("provider_id", name=op.f("pk_provider_generations")),
    )
    op.create_table(
        "provider_traits",
        sa.Column("provider_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("trait", Text(255), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"], ["resource_providers.id"], name=op.f("fk_provider_traits_provider_id")
        ),
        sa.PrimaryKeyConstraint("provider_id", "trait", name=op.f("pk_provider_traits")),
    )
    op.create_table(
        "allocations",
        sa.Column("consumer_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("provider_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("resource_class", Text(255), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_allocations_amount_positive")),
        sa.ForeignKeyConstraint(["consumer_id"], ["consumers.id"], name=op.f("fk_allocations_consumer_id")),
        sa.ForeignKeyConstraint(
            ["provider_id", "resource_class"],
            ["inventories.provider_id", "inventories.resource_class"],
            name=op.f("fk_allocations_provider_id_resource_class"),
        ),
        sa.PrimaryKeyConstraint("consumer_id", "provider_id", "resource_class", name=op.f("pk_allocations")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_allocations_provider", "allocations", ["provider_id", "resource_class"], unique=False)
