"""What a caller says to the router and hears from it: queries, pages, records. Plain values, no I/O.

It is one vocabulary, and longer than a module should be because half of it is what the words mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, get_args

import attrs

from cloudcore._values import FrozenDict, require_flag, require_instance, require_items, require_mapping, require_utc
from cloudcore.errors import CloudcoreError, InvalidArgument, InvalidQuery, UnreadableValue
from cloudcore.listing.json_form import NotFinite, json_objects, json_writer
from cloudcore.notebook import Table, html_of, table, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from cloudcore.listing.json_form import JsonWriter

__all__ = [
    "UNKNOWN",
    "Answered",
    "CellReport",
    "CellState",
    "CellStatus",
    "Counts",
    "Fetching",
    "Page",
    "Query",
    "Record",
    "Require",
    "RouterStatus",
    "Sort",
    "as_sent",
]

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=StrEnum)
Reader: TypeAlias = "Callable[[Any], Any]"
_LONGEST = 10**9
"""Records that a page may have."""

UNKNOWN = "UNKNOWN"
"""``vm_state`` of a record that only the directory vouches for, because its cell does not answer."""


@attrs.frozen
class Sort:
    """One key of an order.

    Attributes:
        column: A sortable column of the source.
        descending: Largest first.
        nulls_first: Where rows without a value go. None: as if NULL were the smallest value, so last when descending
            and first when ascending. The answer is the same on every database.
    """

    column: str
    descending: bool = attrs.field(default=False, kw_only=True)
    nulls_first: bool | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuse what is of another type."""
        require_instance(self.column, str, "sort", InvalidQuery)
        require_flag(self.descending, "descending", InvalidQuery)
        if self.nulls_first is not None:
            require_flag(self.nulls_first, "nulls_first", InvalidQuery)

    @property
    def puts_nulls_first(self) -> bool:
        """Where NULLs go, with the default filled in."""
        return not self.descending if self.nulls_first is None else self.nulls_first


class Fetching(StrEnum):
    """How the rows of a page are brought in."""

    AUTO = "auto"
    """Keys first where the projection has wide columns and most rows fetched would not be shown, else rows."""
    ROWS = "rows"
    """Whole rows at once: one statement per cell."""
    KEYS = "keys"
    """Only keys and sort values at first, then the rows of the winners: two statements per cell that contributes."""


class Require(StrEnum):
    """What a caller insists on."""

    ANY = "any"
    """A partial page is an answer; its ``cells`` say what is missing."""
    ALL = "all"
    """Every cell asked must answer, else :class:`~cloudcore.errors.CellUnavailable` is raised and nothing returned."""


def _sorts(value: Any) -> tuple[Sort, ...] | None:
    if value is None:
        return None
    items = (
        (value,) if isinstance(value, str | Sort) else require_items(value, "sort", "Sorts or columns", InvalidQuery)
    )
    return tuple(_sort(item) for item in items)


def _sort(item: Any) -> Sort:
    if isinstance(item, Sort):
        return item
    if not isinstance(item, str):
        raise InvalidQuery(
            f"sort: expected a column or a Sort, such as Sort('name', descending=True), got {item!r:.100}",
            field="sort",
            value=item,
        )
    return Sort(item)


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else require_items(value, "columns", "names", InvalidQuery)
    for name in names:
        require_instance(name, str, "columns", InvalidQuery)
    return names


def _words(value: Any, field: str) -> frozenset[str]:
    if type(value) is frozenset:
        return value  # what they are is looked at where they are sent
    words = (value,) if isinstance(value, str) else require_items(value, field, "words", InvalidQuery)
    return frozenset(require_instance(word, str, field, InvalidQuery) for word in words)


# A function each: of an attrs.Converter type checkers take a frozenset alone.
def _tags(value: Any) -> frozenset[str]:
    return _words(value, "tags")


def _tags_any(value: Any) -> frozenset[str]:
    return _words(value, "tags_any")


def _not_tags(value: Any) -> frozenset[str]:
    return _words(value, "not_tags")


def _not_tags_any(value: Any) -> frozenset[str]:
    return _words(value, "not_tags_any")


def _pairs(value: Any) -> Any:
    return _frozen(require_mapping(value, "metadata", InvalidQuery))


def _fetching(value: Fetching | str) -> Fetching:
    return _choice(Fetching, value, "fetching")


def _require(value: Require | str) -> Require:
    return _choice(Require, value, "require")


def _choice(choices: type[E], value: Any, field: str) -> E:
    if type(value) is choices:
        return value
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(choices)
        raise InvalidQuery(f"{field}: expected one of {known}, got {value!r:.100}", field=field, value=value) from None


def _utc(value: datetime | None, field: attrs.Attribute[Any]) -> datetime | None:
    return None if value is None else require_utc(value, field.name, InvalidQuery)


def _frozen(value: Any) -> Any:
    """A copy that later changes to the caller's lists and dictionaries do not reach."""
    if isinstance(value, Mapping):
        return FrozenDict({name: _frozen(content) for name, content in value.items()})
    if isinstance(value, list):
        return tuple(value)
    return frozenset(value) if isinstance(value, set) else value


@attrs.frozen(kw_only=True, eq=False)
class Query:
    """Which records, in which order, how many at a time.

    Attributes:
        where: ``{column: condition}``, all of which must hold, or any SQLAlchemy expression over the source's table.
            A condition is a value (equality), None (IS NULL), a list, tuple or set (IN; empty means no record at all),
            or a mapping of operators: ``eq, ne, in, not_in, lt, le, gt, ge, prefix, contains, regex, null``. Prefix
            and contains are exact, case-sensitive text; regex is the dialect of each cell's database.
        sort: Keys in order of weight; None for newest first, where the source knows ``created_at``. The source's key
            column closes every order by itself, ascending.
        limit: Records per page; None for all there are.
        columns: Names wanted, None for all that the source shows. The key column always comes along.
        tenant, host: Shorthands for equality with the source's columns of that meaning.
        deleted: False: only records that live; True: only deleted ones; None: both.
        hidden: Also show records that are hidden, such as the unfinished copy of a move between cells.
        changes_since, changes_before: Bounds on ``updated_at``, both inclusive.
        tags, tags_any, not_tags, not_tags_any: The record has all of these, at least one, not all, none of these.
        metadata: Pairs of key and value that the record has, each pair as a pair.
        unknown: Where a cell does not answer, show what the directory knows of its records, marked ``UNKNOWN``; not on
            pages read backwards.
        fetching: See :class:`Fetching`.
        require: See :class:`Require`.
    """

    where: Any = attrs.field(default=None, converter=_frozen)
    sort: tuple[Sort, ...] | None = attrs.field(default=None, converter=_sorts)
    limit: int | None = attrs.field(default=1000)
    columns: tuple[str, ...] | None = attrs.field(default=None, converter=_names)
    tenant: str | None = None
    host: str | None = None
    deleted: bool | None = False
    hidden: bool = False
    changes_since: datetime | None = attrs.field(
        default=None,
        converter=attrs.Converter(_utc, takes_field=True),  # type: ignore[misc]  # attrs' stubs lag
    )
    changes_before: datetime | None = attrs.field(
        default=None,
        converter=attrs.Converter(_utc, takes_field=True),  # type: ignore[misc]  # attrs' stubs lag
    )
    tags: frozenset[str] = attrs.field(default=frozenset(), converter=_tags)
    tags_any: frozenset[str] = attrs.field(default=frozenset(), converter=_tags_any)
    not_tags: frozenset[str] = attrs.field(default=frozenset(), converter=_not_tags)
    not_tags_any: frozenset[str] = attrs.field(default=frozenset(), converter=_not_tags_any)
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=_pairs)
    unknown: bool = False
    fetching: Fetching = attrs.field(default=Fetching.AUTO, converter=_fetching)
    require: Require = attrs.field(default=Require.ANY, converter=_require)

    @limit.validator
    def _check_limit(self, _: attrs.Attribute[Any], value: int | None) -> None:
        if value is not None and (type(value) is not int or not 0 <= value <= _LONGEST):
            raise InvalidQuery(
                f"limit: expected a whole number from 0 to {_LONGEST}, or None for all, got {value!r}", field="limit"
            )

    def __attrs_post_init__(self) -> None:
        """Refuse what is of another type, or contradicts itself."""
        if self.deleted is not None:
            require_flag(self.deleted, "deleted", InvalidQuery)
        require_flag(self.hidden, "hidden", InvalidQuery)
        require_flag(self.unknown, "unknown", InvalidQuery)
        since, before = self.changes_since, self.changes_before
        if since is not None and before is not None and since > before:
            raise InvalidQuery(f"changes_since {since} is later than changes_before {before}", field="changes_since")


class CellState(StrEnum):
    """What became of one cell in one call."""

    ANSWERED = "answered"
    SLOW = "slow"
    """It did not answer before its deadline."""
    DOWN = "down"
    """It failed, sent nonsense, or its breaker is open."""
    SKIPPED = "skipped"
    """It was not asked: the directory proves that it has nothing, or it is disabled or gone."""


_WHOLE = frozenset({CellState.ANSWERED, CellState.SKIPPED})
_STATE = attrgetter("state")
_NAMED = 5  # cells that a sentence names at most; a table has them all


@attrs.frozen(kw_only=True)
class CellReport:
    """One cell's part in a call.

    Attributes:
        name: The cell.
        state: See :class:`CellState`.
        rows: Records of this cell in the result.
        fetched: Rows decoded from this cell to make the result.
        statements: Statements sent to it.
        seconds: Time it took to answer, summed over its statements; no pause of the caller's counts.
        error: What went wrong, or why it was not asked; None when it answered.
        error_type: The class of :mod:`cloudcore.errors` that this would be, such as ``"DatabaseUnavailable"``; None
            when it answered or was not asked.
        transient: Whether the same question may be answered later: True for connections, time-outs and open breakers,
            False for what somebody must mend (a missing table, an unreadable value, rows out of order); None as above.
        exhausted: It has no further record after this result.
    """

    name: str
    state: CellState
    rows: int = 0
    fetched: int = 0
    statements: int = 0
    seconds: float = 0.0
    error: str | None = None
    error_type: str | None = None
    transient: bool | None = None
    exhausted: bool = False


@attrs.frozen(kw_only=True)
class CellStatus:
    """How a cell stands, as far as its router remembers.

    Attributes:
        enabled: Whether it is asked at all.
        breaker: ``"closed"``, ``"open"`` or ``"half-open"``.
        failures: In a row, so far.
        probe_in: Seconds until an open breaker lets a probe through; None when closed.
        answered_ago: Seconds since its last answer; None when it never answered.
        reason: The last failure's text; None after an answer.
    """

    enabled: bool
    breaker: str
    failures: int
    probe_in: float | None
    answered_ago: float | None
    reason: str | None


@attrs.frozen(kw_only=True)
class RouterStatus:
    """How the cells of a router stand.

    Attributes:
        cells: By name.
    """

    cells: Mapping[str, CellStatus]

    @property
    def ready(self) -> bool:
        """No enabled cell's breaker is open."""
        return all(cell.breaker == "closed" for cell in self.cells.values() if cell.enabled)


class Layout:
    """The names of a record's values and how to read them, shared by all records of a query.

    Args:
        names: In order; a row may have further values behind them.
        readers: For each name what turns the driver's value into Python's, None where they are the same.
        key: Where the record's key is.
        forms: For each name the types whose values its reader leaves as they are.
        told: For each name what turns the driver's value into what JSON holds, None where the reader does.
    """

    __slots__ = ("forms", "index", "key", "names", "readers", "told")

    forms: tuple[frozenset[type], ...]
    index: dict[str, int]
    key: int | None
    names: tuple[str, ...]
    readers: tuple[Reader | None, ...]
    told: tuple[Reader | None, ...]

    def __init__(
        self,
        names: tuple[str, ...],
        readers: tuple[Reader | None, ...],
        key: int | None = None,
        *,
        forms: tuple[frozenset[type], ...],
        told: tuple[Reader | None, ...],
    ) -> None:
        self.names, self.key = names, key
        self.readers, self.forms, self.told = readers, forms, told
        self.index = {name: position for position, name in enumerate(names)}


_LAYOUT, _ROW = attrgetter("_layout"), attrgetter("_row")


class Record(Mapping[str, Any]):
    """One record: a read-only mapping of column to value whose columns are attributes too.

    Values are made of the driver's when they are looked at, so that a page of thousands costs nothing for columns that
    nobody looks at. One that is nothing its column can hold raises :class:`~cloudcore.errors.UnreadableValue` then.

    Attributes:
        cell: Name of the cell that it is in. A column of this name is ``record["cell"]``.
        unknown: True when only the directory vouches for it, because that cell does not answer.
    """

    __slots__ = ("_layout", "_row", "cell", "unknown")

    cell: str
    unknown: bool

    def __init__(self, layout: Layout, row: tuple[Any, ...], cell: str, unknown: bool = False) -> None:
        self._layout = layout
        self._row = row
        self.cell = cell
        self.unknown = unknown

    def __getitem__(self, name: str) -> Any:
        position = self._layout.index[name]
        value, read = self._row[position], self._layout.readers[position]
        if read is None or value is None:
            return value
        try:
            return read(value)
        except ValueError as error:
            key = None if self._layout.key is None else str(self._row[self._layout.key])
            raise UnreadableValue(
                f"{self.cell}: row {key!r:.100}: {name}: {error}",
                cell=self.cell,
                column=name,
                identifier=key,
                value=value,
            ) from error

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this record has no column {name!r}; it has {', '.join(self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.names)

    def __len__(self) -> int:
        return len(self._layout.names)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            return self.cell == other.cell and dict(self) == dict(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.cell, *self.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self._layout, self._row, self.cell, self.unknown)

    def __repr__(self) -> str:
        return f"Record(cell={self.cell!r}, {', '.join(f'{name}={self[name]!r}' for name in self)})"


def as_sent(record: Record, columns: Iterable[str]) -> tuple[Any, ...]:
    """The driver's own values of some columns."""
    layout, row = _LAYOUT(record), _ROW(record)
    return tuple([row[layout.index[name]] for name in columns])


def _columns_of(records: Sequence[Record]) -> dict[str, Sequence[Any]]:
    """The values of each column as JSON holds them, read all at once: several times faster than record by record."""
    layouts = set(map(_LAYOUT, records))
    if len(layouts) != 1:  # none, or of several queries
        names = dict.fromkeys(name for record in records for name in record)
        return {name: [record.get(name) for record in records] for name in names}
    (layout,) = layouts
    readers = [told or read for told, read in zip(layout.told, layout.readers, strict=True)]
    each = zip(layout.names, readers, layout.forms, zip(*map(_ROW, records), strict=False), strict=False)
    return {name: _read(records, name, read, forms, values) for name, read, forms, values in each}


def _read(
    records: Sequence[Record], name: str, read: Reader | None, forms: frozenset[type], values: tuple[Any, ...]
) -> Sequence[Any]:
    if read is None or forms.issuperset(map(type, values)):
        return values
    try:
        return [None if value is None else read(value) for value in values]
    except ValueError:
        return [record[name] for record in records]  # which says where it is


def _written(write: Callable[[T], R], value: T, what: str) -> R:
    try:
        return write(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what}: {error}; leave it out of the query's columns", field=what) from error


@attrs.frozen(kw_only=True)
class Page:
    """Part of a result, in order.

    Attributes:
        records: At most ``limit`` of them.
        next_cursor: Where the next page starts; None when the cells that answer have nothing more.
        resume_cursor: Where to go on so that nothing is lost: like *next_cursor*, and also there at the end of the
            result when some cell did not answer, with the place up to which that cell was read.
        previous_cursor: Where the page before this one is read, for :meth:`CellRouter.page` alone; None where the
            result begins, and where placeholders are among the records (``unknown``).
        cells: What became of each cell, by name.
    """

    records: tuple[Record, ...]
    next_cursor: str | None
    resume_cursor: str | None
    previous_cursor: str | None = None
    cells: Mapping[str, CellReport]

    @property
    def complete(self) -> bool:
        """Whether every cell that could contribute did."""
        return _WHOLE.issuperset(map(_STATE, self.cells.values()))

    def to_records(self) -> list[dict[str, Any]]:
        """The records as dictionaries, each with its ``cell``; it is ``cell_name`` where a column is called so."""
        name = "cell_name" if self.records and "cell" in self.records[0] else "cell"
        return [{**record, name: record.cell} for record in self.records]

    def to_json(
        self,
        name: str = "records",
        members: Mapping[str, Any] | None = None,
        *,
        cells: bool = False,
        not_finite: NotFinite = "text",
    ) -> bytes:
        """The page as a JSON object, for the body of an answer: several times faster than by dictionaries.

        Instants, dates and times of day are text by ISO 8601, instants in UTC; decimals, UUIDs and network addresses
        are text, too; bytes are text in base64; numbers, booleans, arrays and documents are themselves.

        Args:
            name: Of the member that holds the records.
            members: What else the object holds; None for ``complete``, ``next_cursor``, ``resume_cursor`` and
                ``previous_cursor``.
            cells: Name each record's cell, as :meth:`to_records` does. Tenants need not see it.
            not_finite: What becomes of NaN and the infinities, which are no numbers of JSON: ``"text"`` (``"NaN"``,
                ``"Infinity"``, ``"-Infinity"``), ``"null"``, or ``"refuse"``: an error.

        Raises:
            InvalidArgument: *members* has the *name*, or *not_finite* is none of these; or a value has no form in
                JSON: leave its column out of the query.
            UnreadableValue: A value is nothing that its column can hold.
        """
        if members is None:
            members = {
                "complete": self.complete,
                "next_cursor": self.next_cursor,
                "resume_cursor": self.resume_cursor,
                "previous_cursor": self.previous_cursor,
            }
        if name in members:
            raise InvalidArgument(f"members: {name!r} is what holds the records", field="members", value=name)
        if not_finite not in get_args(NotFinite):
            raise InvalidArgument(f"not_finite: {not_finite!r} is none of {get_args(NotFinite)}", field="not_finite")
        writer = json_writer(not_finite)
        records = self._records_as_json(writer, cells=cells)
        rest = _written(writer.members, members, "members")
        return f"{{{writer.value(name)}:{records}{',' if members else ''}{rest[1:]}".encode()

    def _records_as_json(self, writer: JsonWriter, *, cells: bool) -> str:
        columns = _columns_of(self.records)
        if cells:
            columns["cell_name" if "cell" in columns else "cell"] = [record.cell for record in self.records]
        return json_objects({name: _written(writer.column, values, name) for name, values in columns.items()})

    def to_pandas(self) -> Any:
        """The records as a ``pandas.DataFrame``.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return self.to_table().to_pandas()

    def to_arrow(self) -> Any:
        """The records as a ``pyarrow.Table``.

        Raises:
            MissingExtra: pyarrow is not installed.
            InvalidArgument: A column holds values of several kinds.
        """
        return self.to_table().to_arrow()

    def to_table(self) -> Table:
        """The records under the names of their columns."""
        records = self.to_records()
        return Table(
            headings=tuple(records[0]) if records else (), rows=tuple(tuple(each.values()) for each in records)
        )

    def _repr_html_(self) -> str:
        return html_of(self._told(), table(self.records, title="Records"), _told_cells(self.cells))

    def _told(self) -> str:
        """How many records these are, what follows, and which cells are not whole."""
        records = f"{len(self.records)} record{'' if len(self.records) == 1 else 's'}"
        away = _cells_away(self.cells)
        if away is None:
            return f"{records}, {'more may follow' if self.next_cursor else 'no more follow'}; every cell answered"
        more = "the other cells may have more" if self.next_cursor else "the other cells have no more"
        return (
            f"{records}, and {more}. Missing: {away} did not answer in full, so there may be rows that are not here. "
            "A query with unknown=True shows which, as far as a directory knows; resume_cursor goes on with them later"
        )


@attrs.frozen(kw_only=True)
class Counts:
    """How many records match.

    Attributes:
        total: Over the cells that answered.
        by: Number for each value of the column that was counted by; empty without one.
        sums: What each column asked for adds up to.
        sums_by: The same for each value of the column that was counted by.
        cells: What became of each cell; ``rows`` is its number.
    """

    total: int
    by: Mapping[Any, int]
    sums: Mapping[str, Any] = attrs.field(factory=FrozenDict)
    sums_by: Mapping[Any, Mapping[str, Any]] = attrs.field(factory=FrozenDict)
    cells: Mapping[str, CellReport]

    @property
    def complete(self) -> bool:
        """Whether every cell that could contribute did."""
        return _WHOLE.issuperset(map(_STATE, self.cells.values()))

    def _repr_html_(self) -> str:
        groups = tuple((key, number, *self.sums_by.get(key, {}).values()) for key, number in self.by.items())
        sums = "".join(f"; {name}: {words(value)}" for name, value in self.sums.items())
        away = _cells_away(self.cells)
        missing = "" if away is None else f". Missing: {away} did not answer in full, and counts for nothing here"
        return html_of(
            f"{self.total} record{'' if self.total == 1 else 's'}{sums}{missing}",
            Table(title="Of each", headings=("value", "records", *self.sums), rows=groups),
            _told_cells(self.cells),
        )


def _cells_away(cells: Mapping[str, CellReport]) -> str | None:
    """The cells that did not answer, by name; None where all did."""
    away = [f"{report.name} ({report.state})" for report in cells.values() if report.state not in _WHOLE]
    hidden = len(away) - _NAMED
    return ", ".join(away[:_NAMED]) + (f" and {hidden} more" if hidden > 0 else "") if away else None


def _told_cells(cells: Mapping[str, CellReport]) -> Table:
    """What became of each cell."""
    return table(cells.values(), ("name", "state", "rows", "seconds", "error"), title="Cells")


@attrs.frozen(kw_only=True)
class Answered(Generic[T]):
    """One cell's answer to :meth:`CellRouter.scatter`.

    Attributes:
        report: What became of the cell.
        value: What the function returned; None when there is an error.
        error: What it raised, or why the cell could not be asked.
    """

    report: CellReport
    value: T | None
    error: CloudcoreError | None
