"""Nova 34 in a process of its own: its migrations, and the lister that its API uses. Serves `bench_listing` and tests.

The lister runs as nova-api runs it, but without HTTP, policy and the REST view: the peer at its fastest.
"""

import logging
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "1")

import peer
import sqlalchemy as sa
from sqlalchemy import event

logging.disable(logging.CRITICAL)

from nova import config, context, objects  # noqa: E402
from nova.compute import instance_list  # noqa: E402
from nova.db.api import api as api_db  # noqa: E402
from nova.db.main import api as main_db  # noqa: E402
from oslo_messaging import transport  # noqa: E402

CONF = config.CONF
objects.register_all()

state = {"latency": 0.0, "statements": 0}


def migrate(urls, kind):
    """Bring empty databases to the head of Nova's own migrations; kind is main or api."""
    from alembic import command
    from nova.db import migration

    for url in urls:
        engine = sa.create_engine(url)
        found = migration._find_alembic_conf(kind)
        found.set_main_option("sqlalchemy.url", engine.url.render_as_string(hide_password=False).replace("%", "%%"))
        with engine.begin() as connection:
            found.attributes["connection"] = connection
            command.upgrade(found, "head")
        engine.dispose()
    return len(urls)


def configure(api_url, main_url, latency=0.0):
    """Point Nova at its databases; every statement but BEGIN first sleeps `latency` seconds."""
    CONF([], project="nova", default_config_files=[])
    CONF.register_opts(transport._transport_opts)
    CONF.set_override("connection", api_url, group="api_database")
    CONF.set_override("connection", main_url, group="database")
    main_db.configure(CONF)
    api_db.configure(CONF)
    state["latency"] = latency
    event.listen(sa.engine.Engine, "before_cursor_execute", _before)
    context.load_cells()
    return [cell.name for cell in context.CELLS]


def _before(connection, cursor, statement, parameters, context_, executemany):
    state["statements"] += 1
    if state["latency"]:
        time.sleep(state["latency"])


def set_latency(seconds):
    """Change the sleep before each statement."""
    state["latency"] = seconds
    return seconds


def statements():
    """How many statements were sent since the last call."""
    count, state["statements"] = state["statements"], 0
    return count


def _context():
    return context.RequestContext(user_id="admin", project_id="admin", is_admin=True)


def raw(limit, marker=None, keys=("created_at",), dirs=("desc",), filters=None):
    """Uuids of one page, rows as the lister yields them: no objects, no joins."""
    context.load_cells()
    _, found = instance_list.get_instances_sorted(
        _context(),
        {"deleted": False, **(filters or {})},
        limit,
        marker,
        [],
        list(keys),
        list(dirs),
        cell_mappings=context.CELLS,
        batch_size=instance_list.get_instance_list_cells_batch_size(limit, context.CELLS),
    )
    return [each["uuid"] for each in found]


def page(limit, marker=None, keys=("created_at",), dirs=("desc",), filters=None):
    """Uuids of one page of objects, as the list call of the API makes it."""
    found, _ = instance_list.get_instance_objects_sorted(
        _context(),
        {"deleted": False, **(filters or {})},
        limit,
        marker,
        ["metadata", "info_cache"],
        list(keys),
        list(dirs),
    )
    return [each.uuid for each in found]


def walk(limit):
    """Uuids of everything, by marker pages of objects: how many, and the last."""
    count, marker = 0, None
    while True:
        found = page(limit, marker)
        if not found:
            return [count, marker]
        count, marker = count + len(found), found[-1]


if __name__ == "__main__":
    peer.serve(
        migrate=migrate,
        configure=configure,
        set_latency=set_latency,
        statements=statements,
        raw=raw,
        page=page,
        walk=walk,
    )
