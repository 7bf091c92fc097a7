"""``drain`` and ``moves``: how hosts would be emptied, and which moves are under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cloudcore.cli.frame import Output, database_option, output_option
from cloudcore.errors import ProviderNotFound
from cloudcore.placement import PlacementTree, plan_drain
from cloudcore.placement.forest.names import SHARES_VIA_AGGREGATE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloudcore.placement import DrainPlan

__all__ = ["COMMANDS"]


@click.command()
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Plan, and change nothing. Required.")
@click.option("--kind", type=click.Choice(["live", "cold", "evacuation"]), default="live", show_default=True)
@click.option(
    "--onto", metavar="HOST", multiple=True, help="To these hosts only, such as those of one cell. Repeatable."
)
@database_option
@output_option
def drain(
    hosts: tuple[str, ...], kind: str, onto: tuple[str, ...], database: str, output: Output, *, dry_run: bool
) -> int:
    """Plan how everything leaves each HOST (uuid or name): moves in order, and what cannot leave and why.

    Cells are not known here: name the hosts that may take something by --onto. Exits with 1 if something cannot leave.
    """
    if not dry_run:
        raise click.UsageError(
            "moves are carried out by the program that owns the guests, with DrainPlan.apply: "
            "add --dry-run to see the plan, and --json for a plan that such a program can read"
        )
    with PlacementTree.open(database) as forest:
        allowed = {forest.provider(each).root for each in onto}
        plan = plan_drain(forest, hosts, kind=kind, may_take=lambda root: not onto or root.uuid in allowed)
    _show(plan, output)
    output.document(plan)
    return 1 if plan.stuck else 0


def _show(plan: DrainPlan, output: Output) -> None:
    if plan.moves:
        rows = [(number, one.consumer, one.source, one.destination) for number, one in enumerate(plan.moves, 1)]
        output.table(("move", "consumer", "from", "to"), rows)
    if plan.stuck:
        left = [(one.consumer, one.source, one.reason) for one in plan.stuck]
        output.table(("cannot leave", "is on", "why"), left)
    if not (plan.moves or plan.stuck):
        output.text("nothing is there to move")


@click.command()
@database_option
@output_option
def moves(database: str, output: Output) -> int:
    """List the moves under way, by migration."""
    with PlacementTree.open(database) as forest, forest.snapshot() as seen:
        found = [
            {
                "migration": move.migration,
                "instance": move.instance,
                "kind": move.kind,
                "state": move.state,
                "source_hosts": _hosts(seen.tree, move.source),
                "destination_hosts": _hosts(seen.tree, move.destination),
                "expires_at": move.expires_at,
            }
            for move in seen.ledger.moves()
        ]
    if found:
        names = ("migration", "instance", "kind", "state", "from", "to", "expires")
        output.table(names, [[", ".join(v) if isinstance(v, list) else v for v in each.values()] for each in found])
    else:
        output.text("no move is under way")
    output.document(found)
    return 0


def _hosts(tree: PlacementTree, providers: Iterable[str]) -> list[str]:
    """Names of the hosts of *providers*, shared pools left out; of one that is gone, which nothing held, the uuid."""
    found = set()
    for uuid in providers:
        try:
            provider = tree.by_uuid(uuid)
        except ProviderNotFound:
            found.add(uuid)
            continue
        if SHARES_VIA_AGGREGATE not in provider.traits:
            found.add(tree.by_uuid(provider.root).name)
    return sorted(found)


COMMANDS = (drain, moves)
