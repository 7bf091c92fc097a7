"""The tables of Nova's cell and API databases that are read, as Nova 34's migrations leave them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = [
    "NOBODY",
    "cell_mappings",
    "host_mappings",
    "instance_info_caches",
    "instance_mappings",
    "instance_metadata",
    "instances",
    "migrations",
    "tags",
]

NOBODY = "00000000-0000-0000-0000-000000000000"
"""Uuid of rows that Nova's own migrations leave behind as markers."""

_metadata = sa.MetaData()


def _table(name: str, /, **columns: sa.types.TypeEngine[Any]) -> sa.Table:
    required = {"id", "uuid", "instance_uuid", "resource_id", "tag"}
    return sa.Table(
        name,
        _metadata,
        *(
            sa.Column(column, type_, primary_key=column == "id", nullable=column not in required)
            for column, type_ in columns.items()
        ),
    )


_TEXT, _INTEGER, _TIME, _YES = sa.String(255), sa.Integer(), sa.DateTime(), sa.Boolean()
_ADDRESS = sa.String(39).with_variant(postgresql.INET(), "postgresql")

instances: sa.Table = _table(
    "instances",
    id=_INTEGER,
    uuid=sa.String(36),
    created_at=_TIME,
    updated_at=_TIME,
    deleted_at=_TIME,
    deleted=_INTEGER,
    cleaned=_INTEGER,
    hidden=_YES,
    user_id=_TEXT,
    project_id=_TEXT,
    image_ref=_TEXT,
    kernel_id=_TEXT,
    ramdisk_id=_TEXT,
    hostname=_TEXT,
    launch_index=_INTEGER,
    key_name=_TEXT,
    key_data=sa.Text(),
    power_state=_INTEGER,
    vm_state=_TEXT,
    task_state=_TEXT,
    memory_mb=_INTEGER,
    vcpus=_INTEGER,
    root_gb=_INTEGER,
    ephemeral_gb=_INTEGER,
    ephemeral_key_uuid=sa.String(36),
    host=_TEXT,
    node=_TEXT,
    compute_id=sa.BigInteger(),
    instance_type_id=_INTEGER,
    user_data=sa.Text(),
    reservation_id=_TEXT,
    launched_at=_TIME,
    terminated_at=_TIME,
    availability_zone=_TEXT,
    display_name=_TEXT,
    display_description=_TEXT,
    launched_on=sa.Text(),
    locked=_YES,
    locked_by=sa.Enum("owner", "admin", name="instances0locked_by"),
    os_type=_TEXT,
    architecture=_TEXT,
    vm_mode=_TEXT,
    root_device_name=_TEXT,
    default_ephemeral_device=_TEXT,
    default_swap_device=_TEXT,
    config_drive=_TEXT,
    access_ip_v4=_ADDRESS,
    access_ip_v6=_ADDRESS,
    auto_disk_config=_YES,
    progress=_INTEGER,
    shutdown_terminate=_YES,
    disable_terminate=_YES,
    cell_name=_TEXT,
)
instance_metadata: sa.Table = _table(
    "instance_metadata", id=_INTEGER, instance_uuid=sa.String(36), key=_TEXT, value=_TEXT, deleted=_INTEGER
)
instance_info_caches: sa.Table = _table(
    "instance_info_caches", id=_INTEGER, instance_uuid=sa.String(36), network_info=sa.Text(), deleted=_INTEGER
)
tags: sa.Table = sa.Table(
    "tags",
    _metadata,
    sa.Column("resource_id", sa.String(36), primary_key=True),
    sa.Column("tag", sa.String(80), primary_key=True),
)
migrations: sa.Table = _table(
    "migrations",
    id=_INTEGER,
    uuid=sa.String(36),
    created_at=_TIME,
    updated_at=_TIME,
    deleted_at=_TIME,
    deleted=_INTEGER,
    source_compute=_TEXT,
    dest_compute=_TEXT,
    source_node=_TEXT,
    dest_node=_TEXT,
    dest_host=_TEXT,
    status=_TEXT,
    instance_uuid=sa.String(36),
    old_instance_type_id=_INTEGER,
    new_instance_type_id=_INTEGER,
    migration_type=sa.Enum("migration", "resize", "live-migration", "evacuation", name="migration_type"),
    hidden=_YES,
    memory_total=sa.BigInteger(),
    memory_processed=sa.BigInteger(),
    memory_remaining=sa.BigInteger(),
    disk_total=sa.BigInteger(),
    disk_processed=sa.BigInteger(),
    disk_remaining=sa.BigInteger(),
    cross_cell_move=_YES,
    user_id=_TEXT,
    project_id=_TEXT,
)

cell_mappings: sa.Table = _table(
    "cell_mappings", id=_INTEGER, uuid=sa.String(36), name=_TEXT, database_connection=sa.Text(), disabled=_YES
)
instance_mappings: sa.Table = _table(
    "instance_mappings",
    id=_INTEGER,
    created_at=_TIME,
    instance_uuid=sa.String(36),
    cell_id=_INTEGER,
    project_id=_TEXT,
    user_id=_TEXT,
    queued_for_delete=_YES,
)
host_mappings: sa.Table = _table("host_mappings", id=_INTEGER, cell_id=_INTEGER, host=_TEXT)
