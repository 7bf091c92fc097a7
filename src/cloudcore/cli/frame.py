"""What every command shares: settings, the options for them, and output as tables or JSON."""

from __future__ import annotations

import functools
import json
import sys
import tomllib
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
import click

from cloudcore._extras import require_extra
from cloudcore._values import one_line
from cloudcore.schema import require_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Output",
    "Settings",
    "as_json",
    "database_option",
    "output_option",
    "pass_settings",
    "progress",
    "read_toml",
    "warn",
]

_WIDE = 10_000
_KEYS = {"database": str, "json": bool, "cells": dict, "cinder": dict, "hosts": dict}


@attrs.frozen(kw_only=True)
class Settings:
    """What the file given as ``--config`` says.

    Attributes:
        database: URL of the database of placement, listing directory and attachments.
        json: Whether JSON is written without being asked for.
        cells: Name → URL of each cell's database.
        cinder: ``endpoint`` and ``project_id`` of a Cinder without Keystone; with Keystone ``auth_url``, ``username``,
            ``password``, ``project_name``, and what else keystoneauth's password plugin takes.
        hosts: Name of each host → its libvirt URI.
    """

    database: str | None = None
    json: bool = False
    cells: Mapping[str, str] = attrs.field(factory=dict)
    cinder: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    hosts: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str) -> Settings:
        """Read the values of a file; what is misspelt or of another type is wrong usage."""
        for name, value in values.items():
            if name not in _KEYS:
                raise click.UsageError(f"{source}: {name!r} is none of {', '.join(_KEYS)}")
            if not isinstance(value, _KEYS[name]):
                raise click.UsageError(f"{source}: {name} is to be of type {_KEYS[name].__name__}, not {value!r}")
            if isinstance(value, dict) and not all(isinstance(each, str) for each in value.values()):
                raise click.UsageError(f"{source}: the values in {name} are to be text")
        return cls(**values)


pass_settings: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Settings)


def database_option(function: Callable[..., Any], *, may_make: bool = False) -> Callable[..., Any]:
    """Add ``--database``, which may come from the environment or the file; give the command its URL.

    A SQLite file that is not there is made for those commands alone that *may_make* one.
    """

    @click.option("--database", metavar="URL", envvar="CLOUDCORE_DATABASE", help="The database.  [$CLOUDCORE_DATABASE]")
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: Any, database: str | None, **options: Any) -> Any:
        database = database or context.find_object(Settings).database  # type: ignore[union-attr]  # set by the group
        if not database:
            raise click.UsageError(
                "which database? Give --database URL, set CLOUDCORE_DATABASE, or name it in the file of --config"
            )
        if not may_make:
            require_file(database)
        return function(*args, database=database, **options)

    return command


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``; give the command an :class:`Output`."""

    @click.option("--json", "as_json", is_flag=True, envvar="CLOUDCORE_JSON", help="JSON instead of tables.")
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: Any, as_json: bool, **options: Any) -> Any:
        settings = context.find_object(Settings)
        return function(*args, output=Output(json=as_json or bool(settings and settings.json)), **options)

    return command


@attrs.frozen(kw_only=True)
class Output:
    """Where a command's answer goes: one JSON document, or text and tables."""

    json: bool

    def document(self, value: Any) -> None:
        """Write the JSON document, if JSON is wanted."""
        if self.json:
            click.echo(json.dumps(as_json(value), indent=2, ensure_ascii=False))

    def line(self, value: Any) -> None:
        """Write one line of JSON: for documents that are too long to hold."""
        click.echo(json.dumps(as_json(value), ensure_ascii=False))

    def text(self, line: str) -> None:
        """Write a line for people, or several."""
        if not self.json:
            click.echo(one_line(line, keeping="\n"))

    def row(self, values: Iterable[Any]) -> None:
        """Write values for people with tabs between them: for tables that are too long to hold."""
        if not self.json:
            click.echo("\t".join("" if value is None else one_line(str(value)) for value in values))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
        """Draw a table for people.

        Raises:
            MissingExtra: rich is not installed.
        """
        if self.json:
            return
        text = require_extra("rich.text", "cli").Text
        heading = None if title is None else text(one_line(title))
        table = require_extra("rich.table", "cli").Table(title=heading, title_justify="left", box=None, pad_edge=False)
        for number, name in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(text("" if cell is None else one_line(str(as_json(cell)))) for cell in row))
        self.draw(table)

    def draw(self, picture: Any) -> None:
        """Draw anything that rich draws, for people. Colours: only on a terminal, and not with ``NO_COLOR``."""
        if self.json:
            return
        width = None if sys.stdout.isatty() else _WIDE  # what is piped on is not folded
        console = require_extra("rich.console", "cli").Console(file=sys.stdout, width=width, markup=False, emoji=False)
        console.print(picture)


def warn(line: str) -> None:
    """Write a line for people to standard error."""
    click.echo(one_line(f"cloudcore: {line}"), err=True)


def read_toml(file: Path, option: str) -> dict[str, Any]:
    """What a TOML file says; one that says nothing is wrong usage of *option*."""
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file}: {error}", param_hint=option) from error
    except RecursionError as error:
        raise click.BadParameter(f"{file}: nested too deeply", param_hint=option) from error


def as_json(value: Any) -> Any:
    """The JSON form of *value*: mappings, sequences, sets (sorted), instants in ISO 8601, attrs classes by field."""
    if isinstance(value, str | int | float | bool | None):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, datetime):
        return value.isoformat()
    if attrs.has(type(value)):
        names = [field.name for field in attrs.fields(type(value)) if not field.name.startswith("_")]
        return {name: as_json(getattr(value, name)) for name in names}
    if hasattr(value, "items"):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(as_json(each) for each in value)
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return str(value)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many are done by now; draws on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bars = require_extra("rich.progress", "cli")
    console = require_extra("rich.console", "cli").Console(stderr=True)
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.completed:,.0f}"))
    with bars.Progress(*columns, bars.TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
