"""cloudcore's own instances as a source to list."""

from __future__ import annotations

import sqlalchemy as sa

from cloudcore.listing.query.sources import RecordSource
from cloudcore.listing.tables import instance_metadata, instance_tags, instances

__all__ = ["CLOUDCORE_INSTANCES"]

CLOUDCORE_INSTANCES = RecordSource(
    instances,
    tenant="project_id",
    host="host",
    updated="updated_at",
    deleted="deleted",
    hidden="hidden",
    pinned=[column.name for column in instances.columns if isinstance(column.type, sa.String)],
    metadata=(instance_metadata, "instance_uuid", "key", "value"),
    tags=(instance_tags, "instance_uuid", "tag"),
)
"""cloudcore's own ``instances`` table."""
