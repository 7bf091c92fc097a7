"""The packaged Alembic revisions; run them with :func:`cloudcore.schema.upgrade_schema`."""
