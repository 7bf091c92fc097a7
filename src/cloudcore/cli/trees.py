"""``tree`` and ``candidates``: the forest of resource providers, and who in it can hold a request."""

from __future__ import annotations

import json
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import attrs
import click

from cloudcore.cli.frame import Output, database_option, output_option
from cloudcore.placement import PlacementTree

if TYPE_CHECKING:
    from cloudcore.placement import Rejection

__all__ = ["COMMANDS"]


@click.group()
def tree() -> None:
    """The forest of resource providers."""


@tree.command()
@click.argument("provider", required=False)
@click.option("--svg", type=click.File("w", lazy=True), help="Draw it into this file instead.")
@database_option
@output_option
def show(provider: str | None, svg: IO[str] | None, database: str, output: Output) -> int:
    """Draw the forest, or PROVIDER (uuid or name) with all below it. --json: as `tree export`."""
    with PlacementTree.open(database) as forest:
        if svg is not None:
            svg.write(forest.to_svg(provider))
            return 0
        if output.json:
            output.document(_export(forest, provider))
        else:
            output.draw(forest.to_rich(provider))
    return 0


@tree.command("export")
@click.argument("file", type=click.File("w", lazy=True), default="-")
@database_option
def export(file: IO[str], database: str) -> int:
    """Write the forest as JSON, each part as Placement's API answers for it, to FILE or standard output."""
    with PlacementTree.open(database) as forest:
        json.dump(forest.as_placement(), file, indent=2)
    file.write("\n")
    return 0


@tree.command("import")
@click.argument("file", type=click.File("r"), default="-")
@database_option
@output_option
def import_(file: IO[str], database: str, output: Output) -> int:
    """Add all providers of what `tree export` wrote, in one edit. What is in use stays behind: it is the ledger's."""
    try:
        data = json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="FILE") from error
    except RecursionError as error:
        raise click.BadParameter("nested too deeply to be a forest", param_hint="FILE") from error
    with PlacementTree.open(database) as forest:
        added = forest.load(data)
    output.text(f"added {added} providers")
    output.document({"added": added})
    return 0


def _export(forest: PlacementTree, provider: str | None) -> dict[str, Any]:
    """What `tree export` writes, of one subtree if a provider is named."""
    data = forest.as_placement()
    if provider is None:
        return data
    kept = {each.uuid for each in forest.subtree(provider)}
    return {
        part: [each for each in content if each["uuid"] in kept]
        if isinstance(content, list)
        else {uuid: each for uuid, each in content.items() if uuid in kept}
        for part, content in data.items()
    }


_MISS = ("host", "reason", "about", "asked", "in use", "capacity", "missing", "provider", "group")
_SHOWN = 10


def _miss(miss: Rejection) -> tuple[Any, ...]:
    """What one host lacks, as a row; hosts that lack only capacity have all the numbers."""
    about = miss.resource_class or " or ".join(miss.names)
    numbers = (miss.asked, miss.used, miss.capacity, miss.missing)
    return (miss.host, miss.reason, about, *numbers, miss.provider_name, miss.suffix)


@click.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Candidates shown at most.")
@click.option("--pack/--spread", default=None, help="Fuller hosts first, or emptier ones. Else in the forest's order.")
@click.option("--why", is_flag=True, help="Say of the hosts that do not fit what each lacks.")
@database_option
@output_option
def candidates(query: str, limit: int, pack: bool | None, why: bool, database: str, output: Output) -> int:
    """Search for what can hold QUERY, in the language of Placement's GET /allocation_candidates.

    For example: cloudcore candidates 'resources=VCPU:2,MEMORY_MB:2048'. Exits with 1 if nothing can.
    """
    order = None if pack is None else ("pack" if pack else "spread")
    with PlacementTree.open(database) as forest:
        search = forest.candidates(query, order_by=order)  # type: ignore[arg-type]  # one of the two words
        found = [candidate for _, candidate in zip(range(limit), search, strict=False)]
        report = search.report() if why or not found else None
        nearest = report.nearest(_SHOWN) if report is not None else []
        near = nearest if nearest or report is None or not why else list(islice(report, _SHOWN))
        names = {provider.uuid: provider.name for provider in forest}
    rows = [(one.host.name, _takes(one.allocations, names), one.root) for one in found]
    document: dict[str, Any] = {
        "candidates": [{"host": c.host.name, "root": c.root, **c.as_placement()} for c in found],
    }
    if found:
        output.table(("host", "takes", "root"), rows)
    if report is not None:
        document["report"] = {
            "hosts": report.hosts,
            "fits": report.fits,
            "counts": report.counts,
            "nearest": [attrs.asdict(each) for each in nearest[:3]],
        }
        output.text(report.summary())
        if why:
            output.table(("hosts", "reason"), [(count, label) for label, count in report.counts.items()])
            output.table(_MISS, [_miss(each) for each in near], title="Nearest" if nearest else "The first of them")
    output.document(document)
    return 0 if found else 1


def _takes(allocations: dict[str, dict[str, int]], names: dict[str, str]) -> str:
    return "; ".join(
        f"{names.get(uuid, uuid)}: " + ", ".join(f"{amount} {name}" for name, amount in amounts.items())
        for uuid, amounts in allocations.items()
    )


COMMANDS = (tree, candidates)
