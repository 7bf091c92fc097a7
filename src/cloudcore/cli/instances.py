"""``list``: instances over all cells."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import attrs
import click

from cloudcore.cli.cells import cells_option
from cloudcore.cli.frame import Output, output_option, progress, warn
from cloudcore.listing import Query, Sort

if TYPE_CHECKING:
    from cloudcore.listing import CellReport, CellRouter

__all__ = ["COMMANDS"]

_SHOWN = ("uuid", "display_name", "project_id", "host", "vm_state", "created_at")
_CONDITION = re.compile(r"(?P<column>\w+)(?P<operator>!=|<=|>=|\^=|\*=|=|<|>)(?P<value>.*)", re.DOTALL)
_OPERATORS = {"!=": "not_in", "<=": "le", ">=": "ge", "^=": "prefix", "*=": "contains", "<": "lt", ">": "gt", "=": "eq"}


@click.command("list")
@click.option("--where", "conditions", metavar="CONDITION", multiple=True, help="See above. May be repeated.")
@click.option("--sort", "keys", metavar="COLUMN[:desc]", multiple=True, help="May be repeated. Default: newest first.")
@click.option("--columns", default=",".join(_SHOWN), show_default=True, help="What to show.")
@click.option("--project", metavar="ID", help="Of this project only.")
@click.option("--host", metavar="NAME", help="On this host only.")
@click.option("--deleted", is_flag=True, help="Deleted ones instead.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Rows of a page.")
@click.option("--cursor", help="Go on from here: what an earlier page printed.")
@click.option("--all", "everything", is_flag=True, help="Every page. With --json one JSON object a line.")
@cells_option
@output_option
def list_(
    router: CellRouter,
    conditions: tuple[str, ...],
    keys: tuple[str, ...],
    columns: str,
    project: str | None,
    host: str | None,
    limit: int,
    cursor: str | None,
    output: Output,
    *,
    deleted: bool,
    everything: bool,
) -> int:
    """List instances over all cells, in one order.

    CONDITION is COLUMN, an operator and a value: = != < <= > >= ^= (begins with) *= (contains); `null` is NULL.
    All conditions hold together. Each operator may be asked once of a column, but != as often as you like.
    Exits with 1 if a cell did not answer: what is shown is then not all.
    """
    shown = tuple(name for name in columns.replace(" ", "").split(",") if name)
    query = Query(
        where=_where(conditions, router) or None,
        sort=tuple(_sort(key) for key in keys) or None,
        columns=shown,
        tenant=project,
        host=host,
        deleted=deleted,
        limit=limit,
    )
    if everything:
        return _everything(router, query, shown, cursor, output)
    page = router.page(query, cursor=cursor)
    output.table((*shown, "cell"), [(*(record[name] for name in shown), record.cell) for record in page.records])
    _warn(page.cells)
    if page.next_cursor:
        output.text(f"more: --cursor {page.next_cursor}")
    output.document(
        {
            "records": page.to_records(),
            "next_cursor": page.next_cursor,
            "resume_cursor": page.resume_cursor,
            "complete": page.complete,
            "cells": {name: attrs.asdict(report) for name, report in page.cells.items()},
        }
    )
    return 0 if page.complete else 1


def _everything(router: CellRouter, query: Query, shown: tuple[str, ...], cursor: str | None, output: Output) -> int:
    """Write record by record, so that a million rows need the memory of a few."""
    with progress("instances") as tell, router.stream(query, cursor=cursor, on_progress=tell) as stream:
        for record in stream:
            row = {**{name: record[name] for name in shown}, "cell": record.cell}
            if output.json:
                output.line(row)
            else:
                output.row(row.values())
        cells = stream.cells
    return 1 if _warn(cells) else 0


def _warn(cells: Any) -> bool:
    """Say on standard error which cells did not answer; whether there are such."""
    missing: list[CellReport] = [report for report in cells.values() if report.state in {"slow", "down"}]
    for report in missing:
        warn(f"{report.name}: {report.state}, {report.error or 'no answer'}")
    return bool(missing)


def _sort(key: str) -> Sort:
    column, _, direction = key.partition(":")
    if direction not in {"", "asc", "desc"}:
        raise click.BadParameter(f"{key!r} is not COLUMN, COLUMN:asc or COLUMN:desc", param_hint="--sort")
    return Sort(column, descending=direction == "desc")


def _where(conditions: tuple[str, ...], router: CellRouter) -> dict[str, dict[str, Any]]:
    where: dict[str, dict[str, Any]] = {}
    for text in conditions:
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise click.BadParameter(f"{text!r} is not COLUMN=VALUE or the like", param_hint="--where")
        column, operator = found["column"], _OPERATORS[found["operator"]]
        asked, value = where.setdefault(column, {}), found["value"]
        if value == "null" and operator in {"eq", "not_in"}:
            operator, operand = "null", operator == "eq"
        elif operator == "not_in":
            asked.setdefault(operator, []).append(_value(column, value, router))
            continue
        else:
            operand = _value(column, value, router)
        if operator in asked:
            raise click.BadParameter(
                f"{text!r}: {column} has a condition of this kind already; only != may be repeated of one column",
                param_hint="--where",
            )
        asked[operator] = operand
    return where


def _value(column: str, text: str, router: CellRouter) -> Any:
    """*text* as the column wants it; unknown columns are refused later, by the query, which knows their names."""
    known = router.source.table.c.get(column)
    try:
        wanted: type[Any] = str if known is None else known.type.python_type
    except NotImplementedError:  # types of one database only
        return text
    try:
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        if wanted is dt.datetime:
            instant = dt.datetime.fromisoformat(text)
            return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)
        return int(text) if wanted is int else float(text) if wanted is float else text
    except (ValueError, KeyError) as error:
        raise click.BadParameter(f"{column}: {text!r} is no {wanted.__name__}", param_hint="--where") from error


COMMANDS = (list_,)
