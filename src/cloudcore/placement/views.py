"""Pictures of a forest: HTML and SVG for notebooks, a rich tree for terminals. Pure; the same input, the same bytes."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._extras import require_extra
from cloudcore.notebook import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from cloudcore.placement.forest.values import Provider

__all__ = ["Row", "render_html", "render_rich", "render_svg", "rows_of", "usage_table"]

ROWS = 200
"""Providers shown at most; the rest is counted in the last line."""

_OPEN = 5
"""Roots that HTML shows open, at most."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FREE, _BUSY, _FULL, _RESERVED = "#2e9e6b", "#d99a1c", "#c8443c", "#9aa3ad"
_LINE, _INK, _FAINT, _GROUND = "#c5ccd3", "#1d2733", "#66717d", "#e8ebee"


@attrs.frozen(kw_only=True)
class Row:
    """One provider as it is drawn.

    Attributes:
        provider: The provider.
        depth: 0 for a root.
        used: Resource class → units in use.
        open_levels: For each level above: does a line run on below this row?
        last: Whether it is the last child of its parent.
        below: Of a root: class, in use, capacity and reserved of all below it, drawn or not.
    """

    provider: Provider
    depth: int
    used: Mapping[str, int]
    open_levels: tuple[bool, ...] = ()
    last: bool = True
    below: Sequence[tuple[str, int, int, int]] = ()


def rows_of(providers: Sequence[Provider], usage: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """The rows of *providers*, which are whole trees in depth-first order; no more than are shown."""
    children: dict[str | None, list[str]] = {}
    known = {provider.uuid for provider in providers}
    for provider in providers:
        parent = provider.parent if provider.parent in known else None
        children.setdefault(parent, []).append(provider.uuid)
    lines: dict[str | None, tuple[bool, ...]] = {None: ()}
    rows: list[Row] = []
    closed = sum(1 for provider in providers[:ROWS] if provider.parent not in known) > _OPEN
    below = _sums(providers, usage, known) if closed else {}
    for provider in providers[:ROWS]:
        parent = provider.parent if provider.parent in known else None
        above = lines[parent]
        last = children[parent][-1] == provider.uuid
        lines[provider.uuid] = () if parent is None else (*above, not last)
        rows.append(
            Row(
                provider=provider,
                depth=0 if parent is None else len(above) + 1,
                used=usage.get(provider.uuid, {}),
                open_levels=above,
                last=last,
                below=below.get(provider.uuid, ()),
            )
        )
    return rows


def _colour(used: int, capacity: int) -> str:
    if used >= capacity:
        return _FULL
    return _BUSY if used * 4 >= capacity * 3 else _FREE


def _bars(provider: Provider, used: Mapping[str, int]) -> Iterator[tuple[str, int, int, int]]:
    """Class, in use, capacity, reserved; classes by name, since who reads a forest has them in another order."""
    for name, inventory in sorted(provider.inventories.items()):
        yield name, used.get(name, 0), inventory.capacity, inventory.reserved


def _sums(
    providers: Sequence[Provider], usage: Mapping[str, Mapping[str, int]], known: Collection[str]
) -> dict[str, list[tuple[str, int, int, int]]]:
    """By root of which anything is drawn: in use, capacity and reserved of all below it, added up by class."""
    sums: dict[str, dict[str, tuple[int, int, int]]] = {}
    below: dict[str, tuple[int, int, int]] = {}
    for place, provider in enumerate(providers):
        if provider.parent not in known:
            if place >= ROWS:
                break
            below = sums[provider.uuid] = {}
            continue
        for name, *numbers in _bars(provider, usage.get(provider.uuid, {})):
            before = below.get(name, (0, 0, 0))
            below[name] = (before[0] + numbers[0], before[1] + numbers[1], before[2] + numbers[2])
    return {root: [(name, *numbers) for name, numbers in of_root.items()] for root, of_root in sums.items()}


def _plain(text: str) -> str:
    """*text* without what no document may hold and what a terminal would obey."""
    return _CONTROL.sub("\ufffd", text)


def _escaped(text: str) -> str:
    return escape(_plain(text))


def _numbers(used: int, capacity: int, reserved: int) -> str:
    kept = f" ({reserved} reserved)" if reserved else ""
    return f"{used}/{capacity}{kept}"


def _share(used: int, capacity: int) -> float:
    return min(1.0, used / capacity) if capacity > 0 else 1.0


def usage_table(
    providers: Iterable[Provider], roots: Mapping[str, str], usage: Mapping[str, Mapping[str, int]]
) -> Table:
    """One row for each provider and class; *roots* gives the names of hosts by uuid."""
    rows = []
    for provider in providers:
        for name, stock in sorted(provider.inventories.items()):
            used = usage.get(provider.uuid, {}).get(name, 0)
            limits = (stock.total, stock.reserved, stock.allocation_ratio, stock.capacity)
            rows.append((roots[provider.root], provider.name, name, *limits, used, stock.capacity - used))
    return Table(headings=_USAGE, rows=tuple(rows))


_USAGE = (
    "host",
    "provider",
    "resource_class",
    "total",
    "reserved",
    "allocation_ratio",
    "capacity",
    "used",
    "free",
)

# --- SVG -------------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _INDENT, _BAR = 920, 24, 22, 74
_COLUMN = 178


def render_svg(rows: Sequence[Row], hidden: int, title: str) -> str:
    """Draw *rows* as one SVG document: names, a bar for each resource class, traits as a tooltip."""
    names = max((len(row.provider.name) * 7.4 + row.depth * _INDENT for row in rows), default=0.0)
    left = round(min(max(names + 34, 120), 420))
    most = max((len(row.provider.inventories) for row in rows), default=1)
    width = max(_WIDTH, left + most * _COLUMN + 16) if most > 3 else left + max(most, 1) * _COLUMN + 16
    height = (len(rows) + 1 + bool(hidden)) * _HEIGHT + 16
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{_escaped(title)}" '
            f'font-family="ui-sans-serif, system-ui, sans-serif" font-size="12">'
        ),
        f"<title>{_escaped(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        f'<text x="12" y="21" fill="{_FAINT}">{_escaped(title)}</text>',
    ]
    for index, row in enumerate(rows):
        parts += _svg_row(row, (index + 1) * _HEIGHT + 8, left)
    if hidden:
        y = (len(rows) + 1) * _HEIGHT + 24
        parts.append(f'<text x="12" y="{y}" fill="{_FAINT}">and {hidden} more providers</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _svg_row(row: Row, y: int, left: int) -> Iterator[str]:
    middle = y + _HEIGHT // 2
    x = 14 + row.depth * _INDENT
    for level, runs_on in enumerate(row.open_levels):
        if runs_on:
            at = 14 + level * _INDENT + 8
            yield f'<path d="M{at} {y}V{y + _HEIGHT}" stroke="{_LINE}" fill="none"/>'
    if row.depth:
        at = x - _INDENT + 8
        end = middle if row.last else y + _HEIGHT
        yield f'<path d="M{at} {y}V{end}M{at} {middle}H{x - 2}" stroke="{_LINE}" fill="none"/>'
    traits = ", ".join(sorted(row.provider.traits)) or "no traits"
    weight = ' font-weight="600"' if not row.depth else ""
    yield (
        f'<text x="{x + 2}" y="{middle + 4}" fill="{_INK}"{weight}>{_escaped(row.provider.name)}'
        f"<title>{escape(traits)}</title></text>"
    )
    for place, (name, used, capacity, reserved) in enumerate(_bars(row.provider, row.used)):
        yield from _svg_bar(left + place * _COLUMN, middle, name, used, capacity, reserved)


def _svg_bar(x: int, middle: int, name: str, used: int, capacity: int, reserved: int) -> Iterator[str]:
    fill = round(_share(used, capacity) * _BAR, 1)
    colour = _RESERVED if capacity <= 0 else _colour(used, capacity)
    label = name.removeprefix("CUSTOM_")
    short = label if len(label) <= 14 else label[:13] + "…"
    yield f'<rect x="{x}" y="{middle - 1}" width="{_BAR}" height="7" rx="3" fill="{_GROUND}"/>'
    if fill:
        yield f'<rect x="{x}" y="{middle - 1}" width="{fill}" height="7" rx="3" fill="{colour}"/>'
    yield (
        f'<text x="{x}" y="{middle - 4}" font-size="9" fill="{_FAINT}">{escape(short)}'
        f"<title>{escape(name)}: {_numbers(used, capacity, reserved)}</title></text>"
    )
    yield f'<text x="{x + _BAR + 6}" y="{middle + 6}" font-size="10" fill="{_INK}">{used}/{capacity}</text>'


# --- HTML ------------------------------------------------------------------------------------------------------------

_STYLE = (
    "<style>.cloudcore-tree{font:13px/1.7 ui-sans-serif,system-ui,sans-serif}.cloudcore-tree details,"
    ".cloudcore-tree .leaf{margin-left:1.1em}.cloudcore-tree summary{cursor:pointer}"
    f".cloudcore-tree .bar{{display:inline-block;width:4.5em;height:.55em;border-radius:.3em;background:{_GROUND};"
    "overflow:hidden;margin:0 .3em 0 .8em}.cloudcore-tree .bar i{display:block;height:100%}"
    f".cloudcore-tree small{{color:{_FAINT}}}</style>"
)


def render_html(rows: Sequence[Row], hidden: int, title: str) -> str:
    """Draw *rows* as nested, collapsible HTML.

    Roots are open when there are few. Where there are more they are closed, and each shows the sum over all below it.
    """
    opened = " open" if sum(1 for row in rows if not row.depth) <= _OPEN else ""
    parts = [_STYLE, f'<div class="cloudcore-tree"><small>{_escaped(title)}</small>']
    depth_of_open: list[int] = []
    for index, row in enumerate(rows):
        while depth_of_open and depth_of_open[-1] >= row.depth:
            parts.append("</details>")
            depth_of_open.pop()
        following = rows[index + 1] if index + 1 < len(rows) else None
        if following is not None and following.depth > row.depth:
            parts.append(f"<details{opened}><summary>{_html_line(row)}{_html_bars(row.below)}</summary>")
            depth_of_open.append(row.depth)
        else:
            parts.append(f'<div class="leaf">{_html_line(row)}{_html_bars(row.below)}</div>')
    parts += ["</details>"] * len(depth_of_open)
    if hidden:
        parts.append(f"<small>and {hidden} more providers</small>")
    return "".join([*parts, "</div>"])


def _html_line(row: Row) -> str:
    traits = escape(", ".join(sorted(row.provider.traits)), quote=True)
    return f'<span title="{traits}">{_escaped(row.provider.name)}</span>{_html_bars(_bars(row.provider, row.used))}'


def _html_bars(bars: Iterable[tuple[str, int, int, int]]) -> str:
    return "".join(
        f'<span class="bar" title="{escape(name)}: {_numbers(used, capacity, reserved)}">'
        f'<i style="width:{_share(used, capacity):.0%};background:{_colour(used, capacity)}"></i></span>'
        f"<small>{escape(name)} {_numbers(used, capacity, reserved)}</small>"
        for name, used, capacity, reserved in bars
    )


# --- terminals -------------------------------------------------------------------------------------------------------


def render_rich(rows: Sequence[Row], hidden: int, title: str) -> Any:
    """Draw *rows* as a ``rich.tree.Tree``.

    Raises:
        MissingExtra: rich is not installed.
    """
    trees = require_extra("rich.tree", "rich")
    text = require_extra("rich.text", "rich")
    top = trees.Tree(text.Text(_plain(title), style="dim"))
    branches: list[Any] = [top]
    for row in rows:
        del branches[row.depth + 1 :]
        line = text.Text(_plain(row.provider.name), style="bold" if not row.depth else "")
        for name, used, capacity, reserved in _bars(row.provider, row.used):
            style = {_FULL: "red", _BUSY: "yellow", _FREE: "green"}[_colour(used, capacity)]
            full = round(_share(used, capacity) * 8)
            line.append(f"  {name} ", style="dim").append("━" * full, style=style).append("━" * (8 - full), style="dim")
            line.append(f" {_numbers(used, capacity, reserved)}")
        branches.append(branches[-1].add(line))
    if hidden:
        top.add(text.Text(f"and {hidden} more providers", style="dim"))
    return top
