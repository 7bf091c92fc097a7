"""Makes the page of figures, `docs/explanation/figures.md`, of what benchmarks have measured.

    make bench                      # writes bench/results/AREA.json, one file for each area
    python -m bench.figures         # takes these files over into docs/explanation/figures/, draws plots and page

Nothing on the page is written by hand: each number comes from one of the files beside its plots. An area that was not
run anew keeps the file of its last run. `python -m bench.figures --page` draws the page again of what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness import HERE, REPOSITORY, RESULTS, bound_of, figure_of, seconds

PAGE = REPOSITORY / "docs" / "explanation" / "figures.md"
OURS, PROMISE, MISSED = "#2e6f9e", "#1d2733", "#c8443c"
NARROW = "\N{NO-BREAK SPACE}"
KINDS = ("ratios", "shares", "growth")
"""Of plots, as their files are named."""

TITLES = {
    "alternates": "Alternates",
    "attach": "Attachments",
    "engines": "Engines",
    "ledger": "Ledger",
    "listing": "Listing",
    "load": "Many callers",
    "scaling": "How it grows",
    "search": "Search",
    "select": "Selection",
    "servers": "Servers in examples",
}

HEAD = """# Figures

What `make bench` measured, as it wrote it down; nothing here was typed. Each comparison runs ours and the peer in
turns, in one run, on the same data, and compares the answers before any time counts. A time is the median; *ratio* is
the peer's time by ours, or our rate by the peer's; *promise* is what a change may not break. Areas are measured one by
one, so each has its own date. Other machines give other times: look at ratios.
"""

REASONS = HERE / "shortfalls.toml"

UNIT = re.compile(r"^(\w+/s), |, (s|ms|µs|MB|%|ns a provider|bytes a provider|\w+/s)(?=$|;)")
"""The unit of a row that was measured otherwise, in what it calls its work."""


# --- what was measured ------------------------------------------------------------------------------------------------


def collect(results: Path, kept: Path, *, quick: bool = False) -> list[str]:
    """Take the files of *results* over into *kept*; the names of their areas.

    Runs that were *quick* are left alone unless they are asked for, and so is what is not newer than what there is.
    """
    kept.mkdir(parents=True, exist_ok=True)
    taken = []
    for path in sorted(results.glob("*.json")):
        found, there = json.loads(path.read_text()), kept / path.name
        known = there.exists() and date_of(found) <= date_of(json.loads(there.read_text()))
        if not known and (quick or not found.get("quick")):
            shutil.copyfile(path, there)
            taken.append(path.stem)
    return taken


def read(kept: Path) -> list[dict[str, Any]]:
    """What was measured, area by area, how things grow last."""
    areas = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    return sorted(areas, key=lambda area: (area["area"] == "scaling", area["area"]))


def date_of(area: Mapping[str, Any]) -> str:
    """When it was measured; dates are in the order of their texts."""
    return str(area["machine"]["date"])


def reasons() -> dict[str, dict[str, str]]:
    """Why rows fall short: area → work → a sentence."""
    return tomllib.loads(REASONS.read_text())


def unknown_reasons(areas: Sequence[Mapping[str, Any]], told: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Reasons for rows that there are not, in areas that were measured."""
    works = {area["area"]: {each["work"] for each in (*area["rows"], *area.get("curves", ()))} for area in areas}
    return [f"{area}: {work}" for area, rows in told.items() if area in works for work in rows.keys() - works[area]]


def promise(row: Mapping[str, Any]) -> str:
    """What a row promises, in words."""
    bound = bound_of(row)
    if bound is None:
        return "–"
    sign = "≤" if bound.endswith("most") else "≥"
    told = number(row["must"]) if bound.startswith("ratio") else _told(row, row["must"])
    return f"{'ratio ' if bound.startswith('ratio') else ''}{sign} {told}"


def missed(areas: Sequence[Mapping[str, Any]], told: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
    """One row of a table for each promise that was not kept, with the reason where one is known."""
    lines = []
    for area in areas:
        why = (told or {}).get(area["area"], {})
        for row in area["rows"]:
            if row["met"] is False:
                measured = number(row["ratio"]) if str(bound_of(row)).startswith("ratio") else short(row, "ours")
                lines.append(_cells(title(area), plain(row["work"]), promise(row), measured, why.get(row["work"], "")))
        for curve in area.get("curves", ()):
            if curve["met"] is False:
                work = f"{curve['work']}, with more {curve['size']}"
                power = f"power ≤ {curve['must']:g}", f"{curve['slope']:.2f}"
                lines.append(_cells(title(area), work, *power, why.get(curve["work"], "")))
    return lines


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def title(area: Mapping[str, Any]) -> str:
    """The heading of an area."""
    return TITLES.get(area["area"], area["area"].capitalize())


def short(row: Mapping[str, Any], side: str) -> str:
    """A median without its spread, or what was measured otherwise, with its unit."""
    value = row.get(side)
    return "–" if value is None else _told(row, value)


def _told(row: Mapping[str, Any], value: float) -> str:
    if "ours_min" in row:
        return seconds(value)
    found = UNIT.search(row["work"])
    unit = (found[1] or found[2]) if found else ""
    return seconds(value) if unit == "s" else f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(
    areas: Sequence[Mapping[str, Any]],
    plots: Mapping[str, Sequence[str]],
    told: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The page in Markdown; *plots* gives the names of each area's pictures, *told* why rows fall short."""
    if not areas:
        return f"{HEAD}\nNo run has been taken over yet.\n"
    parts = [HEAD, *_summary(areas), "", "## What is not met", ""]
    short_of = missed(areas, told)
    if short_of:
        parts += ["| area | work | promised | measured | why |", "|---|---|---|---|---|", *short_of, ""]
    else:
        parts += ["Every promise was kept in these runs.", ""]
    for area in areas:
        parts += [f"## {title(area)}", "", _about(area), ""]
        parts += [f"![{title(area)}](figures/{name})\n" for name in plots.get(area["area"], ())]
        if area["rows"]:
            parts += ["| work | ours | peer | ratio | promise | kept |", "|---|---|---|---|---|---|"]
            parts += [_line(row) for row in area["rows"]] + [""]
        if area.get("curves"):
            parts += ["| work | grows with | as a power of it | from … to | promise |", "|---|---|---|---|---|"]
            parts += [_growth(curve) for curve in area["curves"]] + [""]
    return "\n".join(parts).rstrip() + "\n"


def _summary(areas: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| area | promises kept | measured |", "|---|---|---|"]
    for area in areas:
        promised = [each for each in (*area["rows"], *area.get("curves", ())) if each["met"] is not None]
        kept = f"{sum(each['met'] for each in promised)} of {len(promised)}" if promised else "none made"
        anchor = re.sub(r"[^\w\- ]", "", title(area).lower()).replace(" ", "-")
        lines.append(f"| [{title(area)}](#{anchor}) | {kept} | {date_of(area)} |")
    return lines


def _about(area: Mapping[str, Any]) -> str:
    machine = area["machine"]
    peers = ", ".join(f"{name} ({version})" for name, version in area["versions"].items() if name != "python")
    beside = f" Beside {peers}." if peers else ""
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}.{beside}"
    )


def _line(row: Mapping[str, Any]) -> str:
    ratio = "–" if row["ratio"] is None else number(row["ratio"])
    kept = {True: "yes", False: "**no**", None: "–"}[row["met"]]
    work, _, peer = row["work"].partition("; ")
    more = "; ".join(part for part in (f"beside {peer}" if peer else "", row.get("note", "")) if part)
    what = f"{plain(work)}<br><small>{more}</small>" if more else plain(work)
    told = short(row, "ours"), short(row, "peer"), ratio, promise(row), kept
    return _cells(what, *(figure.replace(" ", NARROW) for figure in told))  # which are not to be torn apart


def plain(work: str) -> str:
    """A work without its unit, which stands beside the figures."""
    return UNIT.sub("", work)


def _growth(curve: Mapping[str, Any]) -> str:
    (first, low), (last, high) = curve["points"][0], curve["points"][-1]
    told = [figure_of(value, curve["unit"]) for value in (low, high)]
    ends = f"{told[0]} at {first:,} … {told[1]} at {last:,}"
    promised = "–" if curve["must"] is None else f"≤ {curve['must']:g}"
    return f"| {curve['work']} | {curve['size']} | {curve['slope']:.2f} | {ends} | {promised} |"


# --- plots ------------------------------------------------------------------------------------------------------------


def plot_ratios(area: Mapping[str, Any]) -> Figure | None:
    """How many times as fast as the peer, beside what is promised; None where little was compared."""
    rows = [row for row in area["rows"] if row["ratio"] and bound_of(row) != "ratio at most"]
    if len(rows) < 2:
        return None
    figure, axes = _bars(rows, [row["ratio"] for row in rows])
    for place, row in enumerate(rows):
        if bound_of(row) == "ratio at least":
            axes.plot([row["must"]] * 2, [place - 0.42, place + 0.42], color=PROMISE, linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("times as fast as the peer; the marks are promises", fontsize=8)
    return figure


def plot_shares(area: Mapping[str, Any]) -> Figure | None:
    """How much of what was promised is used; None where little of the kind was."""
    rows = [row for row in area["rows"] if bound_of(row) in {"at least", "at most", "ratio at most"} and row["ours"]]
    if len(rows) < 2:
        return None
    used = {
        "at least": lambda row: row["must"] / row["ours"],
        "at most": lambda row: row["ours"] / row["must"] if row["must"] else 1.0,
        "ratio at most": lambda row: row["ratio"] / row["must"],
    }
    figure, axes = _bars(rows, [used[str(bound_of(row))](row) for row in rows])
    axes.set_xlim(0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("how much of the promise is used up; beyond 100 % it is broken", fontsize=8)
    return figure


def _bars(rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> tuple[Figure, Axes]:
    """A bar for each row, and a line at one."""
    figure = Figure(figsize=(8, 0.6 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = [MISSED if row["met"] is False else OURS for row in rows]
    axes.barh(range(len(rows)), list(values), color=colours, height=0.6)
    axes.set_yticks(range(len(rows)), [_cut(plain(row["work"]).partition("; ")[0]) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(1, color="#9aa3ad", linewidth=1)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_curves(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Each curve with the power that was fitted, on logarithmic axes."""
    across = 3
    down = math.ceil(len(curves) / across)
    figure = Figure(figsize=(9, 2.7 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, curve in zip(grid.flat, curves, strict=False):
        _plot_curve(axes, curve)
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_axis_off()
    return figure


def _plot_curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    sizes, values = zip(*curve["points"], strict=True)
    slope = curve["slope"]
    middle = sum(math.log(v) - slope * math.log(s) for s, v in curve["points"]) / len(sizes)
    axes.plot(sizes, values, marker="o", color=OURS)
    fitted = [math.exp(middle) * size**slope for size in sizes]
    axes.plot(sizes, fitted, "--", color="#d99a1c", label=f"{curve['size']}^{slope:.2f}")
    axes.set(xscale="log", yscale="log")
    axes.set_title(_cut(curve["work"], 34), fontsize=9)
    axes.set_xlabel(curve["size"], fontsize=8)
    low, high = min(*values, *fitted), max(*values, *fitted)
    axes.set_ylim(low / 3, high * 3)  # so that what does not grow looks like it
    axes.set_xticks(sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]}))
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: figure_of(value, curve["unit"]))
    axes.minorticks_off()
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8, frameon=False)


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def draw(areas: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, list[str]]:
    """Draw the plots of each area into *folder*, after removing what was drawn before; their names."""
    for path in folder.glob("*.svg"):
        path.unlink()
    names: dict[str, list[str]] = {}
    for area in areas:
        curves = area.get("curves")
        made = {
            "ratios": plot_ratios(area),
            "shares": plot_shares(area),
            "growth": plot_curves(curves) if curves else None,
        }
        for kind, figure in made.items():
            if figure is not None:
                name = f"{area['area']}-{kind}.svg"
                with mpl.rc_context({"svg.hashsalt": "cloudcore", "svg.fonttype": "none"}):
                    figure.savefig(folder / name, metadata={"Date": None}, transparent=True)
                names.setdefault(area["area"], []).append(name)
    return names


def names_of(areas: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, list[str]]:
    """The plots that there are of each area."""
    return {
        area["area"]: [path.name for kind in KINDS for path in folder.glob(f"{area['area']}-{kind}.svg")]
        for area in areas
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the page of figures.")
    parser.add_argument("--page", action="store_true", help="draw the page of what was taken over before")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where make bench wrote to")
    parser.add_argument(
        "--into", type=Path, default=PAGE, metavar="PAGE", help="another page than the site's, for a look"
    )
    asked = parser.parse_args()
    folder = asked.into.with_suffix("")
    if not asked.page:
        taken = collect(asked.results, folder, quick=asked.into != PAGE)
        print(f"taken over: {', '.join(taken) or 'nothing; run make bench'}")
    areas, told = read(folder), reasons()
    asked.into.write_text(page(areas, draw(areas, folder), told))
    for line in missed(areas, told):
        print(line)
    for line in unknown_reasons(areas, told):
        print(f"{REASONS.name} gives a reason for a row that there is not: {line}")


if __name__ == "__main__":
    main()
