"""Create, upgrade and check the tables of a database.

Scripts and tests call :func:`create_schema`. Deployments run ``cloudcore schema upgrade --database URL``, which walks
the packaged Alembic revisions; both give the same tables. The revision is kept in ``cloudcore_alembic_version``, so
that cloudcore's tables can live beside an application's own.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._extras import require_extra
from cloudcore._forks import when_forked
from cloudcore.database import Database, create_tables, metadata, operations
from cloudcore.database.addresses import missing_file
from cloudcore.database.table_creation import alone
from cloudcore.errors import InvalidArgument, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["AREAS", "SchemaState", "check_schema", "create_schema", "schema_tables", "upgrade_schema"]

AREAS = ("attach", "listing", "placement")
"""The areas that keep tables, each in its module ``tables``."""

VERSION_TABLE = "cloudcore_alembic_version"


class _Turn:
    """One of Alembic's commands at a time: it keeps what it is about for the whole process. A child has its own."""

    def __init__(self) -> None:
        self._renew()
        when_forked(self, _Turn._renew)

    def _renew(self) -> None:
        self.lock = threading.Lock()


_ALEMBIC = _Turn()


@attrs.frozen(kw_only=True)
class SchemaState:
    """What a database holds, compared with this release.

    Attributes:
        revision: The Alembic revision of the database; None where the tables were made by :func:`create_schema` and
            never upgraded, or there are none.
        head: The newest revision that this release knows.
        differences: One line for each table, column or index that is missing or too many; empty when it fits.
    """

    revision: str | None
    head: str
    differences: tuple[str, ...]

    @property
    def current(self) -> bool:
        """The tables are those of this release."""
        return not self.differences and self.revision in {None, self.head}


def schema_tables(areas: Iterable[str] | None = None) -> list[sa.Table]:
    """The tables of *areas* (of all by default), with the table of operations that each of them needs.

    Raises:
        InvalidArgument: An area is not one of :data:`AREAS`.
    """
    chosen = AREAS if areas is None else tuple(areas)
    tables = {operations.name: operations}
    for area in chosen:
        if area not in AREAS:
            raise InvalidArgument(f"areas: {area!r} is none of {', '.join(AREAS)}", field="areas", value=area)
        module = importlib.import_module(f"cloudcore.{area}.tables")
        tables.update({t.name: t for t in vars(module).values() if isinstance(t, sa.Table) and t.metadata is metadata})
    return list(tables.values())


def create_schema(database: Database | str | URL | Engine, *, areas: Iterable[str] | None = None) -> None:
    """Create the tables of *areas* (of all by default) that are not there yet.

    A cell needs ``areas=["listing"]`` only. Existing tables are left as they are, whatever their columns. Processes
    that start together may all call it.

    Raises:
        InvalidArgument: An area is unknown.
        DatabaseUnavailable, DatabaseError: The database could not be reached, or refused.
    """
    tables = schema_tables(areas)
    opened = Database.of(database)
    try:
        with opened.write() as connection:
            create_tables(connection, tables)
    finally:
        if opened is not database:
            opened.close()


def upgrade_schema(database: Database | str | URL | Engine, *, revision: str = "head") -> SchemaState:
    """Bring the tables of every area to *revision*, and return what the database then holds.

    Tables without a revision, as :func:`create_schema` makes them for all areas or for some, are taken over as they
    are where they fit, and those that are not there are made: every database then has all of them. Processes that
    start together may all call it.

    Raises:
        MissingExtra: Alembic is not installed.
        SchemaMismatch: Tables that are there without a revision differ from this release, or the database is at a
            revision that this release does not know.
    """
    opened = Database.of(database)
    try:
        with opened.write() as connection, alone(connection):
            _adopt_unversioned(connection)
            _command("upgrade", connection, revision)
        return check_schema(opened)
    finally:
        if opened is not database:
            opened.close()


def check_schema(database: Database | str | URL | Engine) -> SchemaState:
    """Compare the database with this release. Reads only.

    Raises:
        MissingExtra: Alembic is not installed.
        SchemaMismatch: It is a SQLite file that is not there; none is made.
    """
    opened = Database.of(database)
    try:
        require_file(opened.engine.url, expected=_script().get_current_head())
        with opened.read() as connection:
            return _compare(connection)
    finally:
        if opened is not database:
            opened.close()


def require_file(url: str | URL, *, expected: str | None = None) -> None:
    """SQLite would make a file that is not there, and a look must not.

    Raises:
        SchemaMismatch: *url* names a SQLite file that is not there.
    """
    name = missing_file(url)
    if name is not None:
        raise SchemaMismatch(
            f"{name}: there is no such file; cloudcore schema upgrade --database sqlite:///{name} makes it",
            found=None,
            expected=expected,
        )


def _compare(connection: Connection, tables: Iterable[str] | None = None) -> SchemaState:
    """How the tables of these names differ from this release, by default all."""
    autogenerate = require_extra("alembic.autogenerate", "migrations")
    names = {table.name for table in schema_tables()} if tables is None else set(tables)

    def ours(name: str | None, kind: str, parents: dict[str, str | None]) -> bool:
        table = name if kind == "table" else parents.get("table_name")
        return table is None or table in names  # None: the schema as a whole

    def wanted(_: object, name: str | None, kind: str, *__: object) -> bool:
        return kind != "table" or name in names

    options = {"target_metadata": metadata, "include_name": ours, "include_object": wanted, "compare_type": True}
    context = _context(connection, options)
    found = [_describe(difference) for difference in autogenerate.compare_metadata(context, metadata)]
    return SchemaState(
        revision=context.get_current_revision(), head=_script().get_current_head(), differences=tuple(found)
    )


def _describe(difference: Any) -> str:
    """One of Alembic's differences in words: what is missing, too many or of another kind, by names only."""
    if isinstance(difference, list):
        return "; ".join(_describe(part) for part in difference)
    kind, *parts = difference
    verb, _, what = str(kind).partition("_")
    if verb == "modify":  # schema, table, column, details, found, wanted
        _, table, column, _, found, wanted = parts
        return f"column {table}.{column}: {what} is {found!r}, expected {wanted!r}"
    subject = parts[-1]
    if what == "column":
        return f"{_VERBS[verb]} column {parts[1]}.{subject.name}"
    table = getattr(subject, "table", None)
    where = "" if table is None else f" of table {table.name}"
    name = subject.name or "(" + ", ".join(column.name for column in getattr(subject, "columns", ())) + ")"
    return f"{_VERBS[verb]} {what} {name}{where}"


_VERBS = {"add": "lacks", "remove": "has beyond this release"}


def _adopt_unversioned(connection: Connection) -> None:
    """Tables made by create_schema have no revision: take them as the newest one if they fit, refuse them if not.

    There may be some only, of a cell or of the directory. The others are made, so that a later revision finds all that
    it changes.
    """
    present = set(sa.inspect(connection).get_table_names()) & {table.name for table in schema_tables()}
    state = _compare(connection, present)
    if state.revision is not None or not present:
        return
    if state.differences:
        raise SchemaMismatch(
            f"tables are there ({', '.join(sorted(present))}) without a revision, and differ from this release: "
            f"{'; '.join(state.differences[:5])}. Dump, drop and upgrade an empty database, then load the dump",
            found=None,
            expected=state.head,
        )
    create_tables(connection, schema_tables())
    _command("stamp", connection, "head")


def _config() -> Any:
    config = require_extra("alembic.config", "migrations").Config()
    config.set_main_option("script_location", "cloudcore:migrations")
    return config


def _script() -> Any:
    return require_extra("alembic.script", "migrations").ScriptDirectory.from_config(_config())


def _context(connection: Connection, options: dict[str, Any]) -> Any:
    migration = require_extra("alembic.migration", "migrations")
    return migration.MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **options})


def _command(name: str, connection: Connection, revision: str) -> None:
    command = require_extra("alembic.command", "migrations")
    config = _config()
    config.attributes["connection"] = connection
    try:
        with _ALEMBIC.lock:
            getattr(command, name)(config, revision)
    except require_extra("alembic.util", "migrations").CommandError as error:
        raise SchemaMismatch(
            f"{error}: the database is newer than this release, or not cloudcore's", found=None, expected=revision
        ) from error
