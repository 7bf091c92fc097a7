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
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness import REPOSITORY, RESULTS, figure_of, seconds

PAGE = REPOSITORY / "docs" / "explanation" / "figures.md"
OURS, PROMISE, MISSED = "#2e6f9e", "#1d2733", "#c8443c"

TITLES = {
    "alternates": "Alternates",
    "attach": "Attachments",
    "engines": "Engines",
    "ledger": "The ledger: claims and moves",
    "listing": "Listing over cells",
    "load": "Many callers at once",
    "scaling": "How it grows",
    "search": "The search",
    "select": "Selecting hosts",
    "servers": "Servers in examples",
}

HEAD = """# Figures

What `make bench` measured, as it wrote it down; nothing here was typed. Each comparison runs ours and the peer in
turns, in one run, on the same data, and compares the answers before any time counts. A time is the median; *ratio* is
the peer's time by ours, or as the row says; *promise* is what a change may not break. Other machines give other times:
look at ratios.
"""


# --- what was measured ------------------------------------------------------------------------------------------------


def collect(results: Path, kept: Path) -> list[str]:
    """Take the files of *results* over into *kept*; the names of their areas."""
    kept.mkdir(parents=True, exist_ok=True)
    found = sorted(results.glob("*.json"))
    for path in found:
        shutil.copyfile(path, kept / path.name)
    return [path.stem for path in found]


def read(kept: Path) -> list[dict[str, Any]]:
    """What was measured, area by area, how things grow last."""
    areas = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    return sorted(areas, key=lambda area: (area["area"] == "scaling", area["area"]))


def promise(row: Mapping[str, Any]) -> str:
    """What a row promises, in words."""
    if row["must"] is None:
        return "–"
    if "ours_min" in row and row["ratio"] is None:
        return f"at most {seconds(row['must'])}"
    return f"ratio {row['must']:g}" if row["ratio"] is not None and "ours_min" in row else f"{row['must']:g}"


def missed(areas: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each promise that was not kept."""
    lines = []
    for area in areas:
        for row in area["rows"]:
            if row["met"] is False:
                ratio = "" if row["ratio"] is None else f", ratio {row['ratio']:.3g}"
                measured = f"{short(row, 'ours')}{ratio}"
                lines.append(f"* {title(area)}: {row['work']}: promised {promise(row)}, measured {measured}.")
        for curve in area.get("curves", ()):
            if curve["met"] is False:
                power = f"{curve['must']:g}, measured {curve['slope']:.2f}"
                lines.append(
                    f"* {title(area)}: {curve['work']} grows faster with {curve['size']}: promised power {power}."
                )
    return lines


def title(area: Mapping[str, Any]) -> str:
    """The heading of an area."""
    return TITLES.get(area["area"], area["area"].capitalize())


def short(row: Mapping[str, Any], side: str) -> str:
    """A median without its spread, or the bare number of what was measured otherwise."""
    value = row.get(side)
    if value is None:
        return "–"
    return seconds(value) if f"{side}_min" in row else f"{value:,.4g}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(areas: Sequence[Mapping[str, Any]], plots: Mapping[str, Sequence[str]]) -> str:
    """The page in Markdown; *plots* gives the names of each area's pictures."""
    if not areas:
        return f"{HEAD}\nNo run has been taken over yet.\n"
    parts = [HEAD, "## What is not met", "", *(missed(areas) or ["Every promise was kept in these runs."]), ""]
    for area in areas:
        parts += [f"## {title(area)}", "", _about(area), ""]
        parts += [f"![{title(area)}](figures/{name})\n" for name in plots.get(area["area"], ())]
        if area["rows"]:
            parts += ["| work | ours | peer | ratio | promise | kept |", "|---|---|---|---|---|---|"]
            parts += [_line(row) for row in area["rows"]] + [""]
        if area.get("curves"):
            parts += ["| work | grows with | as a power of it | from … to |", "|---|---|---|---|"]
            parts += [_growth(curve) for curve in area["curves"]] + [""]
    return "\n".join(parts).rstrip() + "\n"


def _about(area: Mapping[str, Any]) -> str:
    machine = area["machine"]
    peers = ", ".join(f"{name} ({version})" for name, version in area["versions"].items() if name != "python")
    beside = f" Beside {peers}." if peers else ""
    return (
        f"{machine['date']}, {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}.{beside}"
    )


def _line(row: Mapping[str, Any]) -> str:
    ratio = "–" if row["ratio"] is None else f"{row['ratio']:,.3g}"
    kept = {True: "yes", False: "**no**", None: "–"}[row["met"]]
    note = f" ({row['note']})" if row.get("note") else ""
    work = f"{row['work']}{note}".replace("|", "\\|")
    return f"| {work} | {short(row, 'ours')} | {short(row, 'peer')} | {ratio} | {promise(row)} | {kept} |"


def _growth(curve: Mapping[str, Any]) -> str:
    (first, low), (last, high) = curve["points"][0], curve["points"][-1]
    told = [figure_of(value, curve["unit"]) for value in (low, high)]
    ends = f"{told[0]} at {first:,} … {told[1]} at {last:,}"
    return f"| {curve['work']} | {curve['size']} | {curve['slope']:.2f} | {ends} |"


# --- plots ------------------------------------------------------------------------------------------------------------


def plot_ratios(area: Mapping[str, Any]) -> Figure | None:
    """How many times as fast as the peer, beside what is promised; None where nothing was compared."""
    rows = [row for row in area["rows"] if row["ratio"] and "ours_min" in row]
    if not rows:
        return None
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    colours = [MISSED if row["met"] is False else OURS for row in rows]
    axes.barh(places, [row["ratio"] for row in rows], color=colours, height=0.6)
    for place, row in zip(places, rows, strict=True):
        if row["must"]:
            axes.plot([row["must"]] * 2, [place - 0.42, place + 0.42], color=PROMISE, linewidth=2)
    axes.set_yticks(list(places), [_cut(row["work"]) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="#9aa3ad", linewidth=1)
    axes.set_xlabel("times as fast as the peer; the marks are promises", fontsize=8)
    return figure


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
    """Draw the plots of each area into *folder*; their names."""
    names: dict[str, list[str]] = {}
    for area in areas:
        curves = area.get("curves")
        made = {"ratios": plot_ratios(area), "growth": plot_curves(curves) if curves else None}
        for kind, figure in made.items():
            if figure is not None:
                name = f"{area['area']}-{kind}.svg"
                with mpl.rc_context({"svg.hashsalt": "cloudcore", "svg.fonttype": "none"}):
                    figure.savefig(folder / name, metadata={"Date": None})
                names.setdefault(area["area"], []).append(name)
    return names


def names_of(areas: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, list[str]]:
    """The plots that there are of each area."""
    return {
        area["area"]: [path.name for kind in ("ratios", "growth") for path in folder.glob(f"{area['area']}-{kind}.svg")]
        for area in areas
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the page of figures.")
    parser.add_argument("--page", action="store_true", help="draw the page of what was taken over before")
    folder = PAGE.with_suffix("")
    if not parser.parse_args().page:
        taken = collect(RESULTS, folder)
        print(f"taken over: {', '.join(taken) or 'nothing; run make bench'}")
    areas = read(folder)
    PAGE.write_text(page(areas, draw(areas, folder)))
    for line in missed(areas):
        print(line)


if __name__ == "__main__":
    main()
