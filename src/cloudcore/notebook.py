"""What answers look like in a notebook: tables of any values of cloudcore, data frames, and bars for long work. Pure.

::

    from cloudcore.notebook import progress, table

    table(ledger.audit())                                     # in a notebook: a table
    table(manager.attachments()).to_pandas()                  # extra ``pandas``; ``to_arrow()``: extra ``arrow``

    with tqdm(unit=" instances") as bar:                      # or any bar of that kind
        for record in router.stream(query, on_progress=progress(bar)): ...

Reports, pages, candidates, selections, moves and audits show themselves this way. It is the one place that writes HTML;
whatever comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from html import escape
from typing import Any, Protocol, TypeVar

import attrs

from cloudcore._extras import require_extra
from cloudcore.errors import InvalidArgument

__all__ = ["Bar", "Table", "html_of", "progress", "table", "words"]

T = TypeVar("T")

ROWS = 50
"""Rows that are shown at most; the rest are counted in a last line. Data frames have them all."""

_LONGEST = 300  # characters of a cell
_GREY = "rgba(128,128,128,0.45)"  # seen on white and on black


def words(value: Any) -> str:
    """A value as a cell shows it: None as a dash, instants in UTC, allocations as ``4 VCPU, 8192 MEMORY_MB``."""
    if value is None:
        return "–"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        with suppress(OverflowError):  # in year 1 or 9999 there may be none in UTC
            value = value.astimezone(UTC) if value.tzinfo else value
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(_pair(key, each) for key, each in value.items()) or "–"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(words(each) for each in value) or "–"
    return str(value)


def counted(number: int, thing: str) -> str:
    """``1 provider``, ``2 providers``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _pair(key: Any, value: Any) -> str:
    if isinstance(value, Mapping) and value and all(type(each) is int for each in value.values()):
        return f"{words(key)}: " + ", ".join(f"{amount} {name}" for name, amount in value.items())
    return f"{words(key)}: {words(value)}"


@attrs.frozen(kw_only=True)
class Table:
    """Rows under headings: HTML in a notebook, plain text elsewhere, and data frames. Immutable.

    Attributes:
        title: What they are.
        headings: Names of the columns.
        rows: Their values, as they are.
        more: How many rows there are beside these, that nobody looked at; None where nobody knows.
    """

    title: str = ""
    headings: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: int | None = 0

    def to_records(self) -> list[dict[str, Any]]:
        """One dictionary for each row."""
        return [dict(zip(self.headings, row, strict=True)) for row in self.rows]

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``.

        Raises:
            MissingExtra: pandas is not installed (extra ``pandas``).
        """
        return require_extra("pandas", "pandas").DataFrame(list(self.rows), columns=list(self.headings))

    def to_arrow(self) -> Any:
        """The rows as a ``pyarrow.Table``; what Arrow has no type for (mappings, enumerations, sets) becomes words.

        Raises:
            MissingExtra: pyarrow is not installed (extra ``arrow``).
            InvalidArgument: A column holds values of several kinds, a number beyond 64 bits, or half a surrogate pair.
        """
        arrow = require_extra("pyarrow", "arrow")
        columns = {}
        for place, name in enumerate(self.headings):
            try:
                columns[name] = arrow.array([_flat(row[place]) for row in self.rows])
            except (arrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
                raise InvalidArgument(
                    f"column {name}: Arrow has no one type for its values ({error}); leave it out of the query, or "
                    "take to_pandas()",
                    field=name,
                ) from error
        return arrow.table(columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [self.headings, *([_short(value) for value in row] for row in self.rows[:ROWS])]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.headings))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join(line.rstrip() for line in (self.title, *lines, self._rest()) if line.strip())

    def _repr_html_(self) -> str:
        head = "".join(f"<th {_CELL}>{escape(name)}</th>" for name in self.headings)
        body = "\n".join(
            f"<tr>{''.join(f'<td {_CELL}>{escape(_short(value))}</td>' for value in row)}</tr>"
            for row in self.rows[:ROWS]
        )
        title = f"<caption {_TITLE}>{escape(self.title)}</caption>" if self.title else ""
        rest = f"<p>{self._rest()}</p>" if self._rest() else ""
        made = f"<table {_STYLE}>{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>{rest}"
        return f'<div style="overflow-x:auto">{made}</div>'

    def _rest(self) -> str:
        hidden = max(len(self.rows) - ROWS, 0)
        if self.more is None:
            return "and perhaps more"
        return f"and {hidden + self.more} more" if hidden + self.more else ""


_STYLE = 'style="border-collapse:collapse;font-size:0.9em;margin:0.4em 0"'
_TITLE = 'style="text-align:left;font-weight:600;padding:0.2em 0;caption-side:top"'
_CELL = f'style="text-align:left;vertical-align:top;padding:0.15em 0.7em 0.15em 0;border-bottom:1px solid {_GREY}"'


def _short(value: Any) -> str:
    text = words(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _flat(value: Any) -> Any:
    """A value for Arrow."""
    if value is None or (
        isinstance(value, bool | int | float | str | bytes | datetime) and not isinstance(value, Enum)
    ):
        return value
    return words(value)


class Shown(list[T]):
    """A list of values that shows itself as a table; a list in everything else."""

    def _repr_html_(self) -> str:
        return table(self, most=len(self))._repr_html_() if self else "<p>none</p>"


def html_of(*parts: Table | str) -> str:
    """Tables and sentences, one below the other; the sentences are escaped."""
    return "<div>" + "\n".join(_html(part) for part in parts if not isinstance(part, Table) or part.rows) + "</div>"


def _html(part: Table | str) -> str:
    return f"<p>{escape(part)}</p>" if isinstance(part, str) else part._repr_html_()


# --- tables of values -------------------------------------------------------------------------------------------------


def table(
    values: Iterable[Any] | Mapping[Any, Any],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    most: int = 1_000,
    names: Iterable[Any] = (),
) -> Table:
    """Make a table of what a call returned: one row for each value, one column for each attribute.

    Takes values of cloudcore (allocations, findings, attachments, selections, candidates), records of a page, plain
    mappings, and a mapping from a name to any of them. Columns that are empty everywhere are left out unless they are
    named.

    Args:
        values: Of one kind. An iterator is read.
        columns: Names of attributes, in this order; all that are public by default.
        title: What they are.
        most: Of how many values the table is made; with more there, it says that there are.
        names: Providers, such as a whole tree: allocations show their names instead of their uuids, which are all
            that the ledger knows.

    Raises:
        InvalidArgument: *columns* names what a value does not have.
    """
    if isinstance(values, Mapping):
        pairs = [({"": key} | _fields(value, columns or ())) for key, value in values.items()]
        columns = None if columns is None else ["", *columns]
    else:
        pairs = []
        for value in values:
            pairs.append(_fields(value, columns or ()))
            if len(pairs) > most:
                break
    called = {provider.uuid: provider.name for provider in names}
    if called:
        pairs = [{name: _named(value, called) for name, value in row.items()} for row in pairs]
    return _made(pairs[:most], columns, title, None if len(pairs) > most else 0)


def _named(value: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): each for key, each in value.items()} if isinstance(value, Mapping) else value


def _fields(value: Any, asked: Sequence[str]) -> dict[str, Any]:
    """The public fields of a value, by name: those that it shows by default, and those *asked* for."""
    if isinstance(value, Mapping):
        cell = getattr(value, "cell", None)
        kept = {str(name): each for name, each in value.items()}
        return kept if cell is None else kept | {"cell_name" if "cell" in kept else "cell": cell}
    row = getattr(value, "_table_row_", None)
    if row is not None:
        own: dict[str, Any] = row()
        known = attrs.fields_dict(type(value)) if attrs.has(type(value)) else {}
        return own | {name: getattr(value, name) for name in asked if name in known and name not in own}
    if not attrs.has(type(value)):
        return {"value": value}
    fields = attrs.fields(type(value))
    return {each.name: getattr(value, each.name) for each in fields if each.repr and not each.name.startswith("_")}


def _made(found: list[dict[str, Any]], columns: Sequence[str] | None, title: str, more: int | None) -> Table:
    every = list(dict.fromkeys(name for row in found for name in row))
    for name in columns or ():
        if found and name not in every:
            raise InvalidArgument(f"columns: no {name!r}; there are {', '.join(every)}", field="columns", value=name)
    filled = [name for name in every if any(words(row.get(name)) != "–" for row in found)]
    shown = filled if columns is None else list(columns)
    rows = tuple(tuple(row.get(name) for name in shown) for row in found)
    return Table(title=title, headings=tuple(shown), rows=rows, more=more)


# --- bars -------------------------------------------------------------------------------------------------------------


class Bar(Protocol):
    """A progress bar, as ``tqdm`` makes it."""

    n: Any
    total: Any

    def update(self, n: Any = 1) -> Any:
        """So many more are done."""


def progress(bar: Bar) -> Callable[..., None]:
    """Make an ``on_progress`` that moves *bar*, whichever of cloudcore's calls it is given to.

    Those tell how many are done by now, then how many there are, if they know; what came of the last one stands before.
    """

    def tell(*told: Any) -> None:
        numbers = [each for each in told if type(each) is int]
        if len(numbers) > 1:
            bar.total = numbers[1]
        bar.update(numbers[0] - bar.n)

    return tell
