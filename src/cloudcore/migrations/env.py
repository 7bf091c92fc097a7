"""Alembic's entry: runs the revisions on the connection that :mod:`cloudcore.schema` hands over."""

from __future__ import annotations

from alembic import context

from cloudcore.database import metadata
from cloudcore.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
