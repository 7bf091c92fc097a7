"""``usage`` and ``holders``: what is in use, by whom."""

from __future__ import annotations

import click

from cloudcore.cli.frame import Output, as_json, database_option, output_option
from cloudcore.placement import AllocationLedger, PlacementTree

__all__ = ["COMMANDS"]


@click.command()
@click.option("--project", metavar="ID", help="Of this project's consumers only.")
@click.option("--user", metavar="ID", help="Of this user's consumers only.")
@click.option("--type", "consumer_type", metavar="TYPE", help="Of consumers of this type only, such as INSTANCE.")
@click.option("--provider", metavar="NAME", help="Of one provider, by name or uuid, with its capacity.")
@database_option
@output_option
def usage(
    project: str | None,
    user: str | None,
    consumer_type: str | None,
    provider: str | None,
    database: str,
    output: Output,
) -> int:
    """Say what is in use: by consumer type, or of one provider."""
    if provider is None:
        with AllocationLedger(database) as ledger:
            found = ledger.usages_by_type(project_id=project, user_id=user, consumer_type=consumer_type)
        rows = [
            (kind, each.consumers, name, amount)
            for kind, each in sorted(found.items())
            for name, amount in sorted(each.amounts.items())
        ]
        output.table(("type", "consumers", "class", "in use"), rows)
        output.document(found)
        return 0
    if project or user or consumer_type:
        raise click.UsageError("--provider stands alone: the counters of a provider do not know by whom")
    with PlacementTree.open(database) as forest:
        shown = forest.provider(provider)
        used = forest.usage(shown)
    parts = {
        name: {"used": used.get(name, 0), "capacity": inventory.capacity, "reserved": inventory.reserved}
        for name, inventory in shown.inventories.items()
    }
    rows = [(name, part["used"], part["capacity"], part["reserved"]) for name, part in parts.items()]  # type: ignore[misc]
    output.table(("class", "in use", "capacity", "reserved"), rows, title=f"{shown.name} ({shown.uuid})")
    output.document({"uuid": shown.uuid, "name": shown.name, "classes": parts})
    return 0


@click.command()
@click.argument("provider")
@click.option("--tree", "whole", is_flag=True, help="Of all providers below it, too.")
@database_option
@output_option
def holders(provider: str, database: str, output: Output, *, whole: bool) -> int:
    """Say who holds what of PROVIDER (uuid or name) now."""
    with PlacementTree.open(database) as forest, AllocationLedger(database) as ledger:
        chosen = forest.subtree(provider) if whole else [forest.provider(provider)]
        found = [(each, holder) for each in chosen for holder in ledger.holders(each.uuid)]
    rows = [
        (holder.consumer, holder.consumer_type, holder.project_id, each.name, name, amount)
        for each, holder in found
        for name, amount in holder.resources.items()
    ]
    output.table(("consumer", "type", "project", "provider", "class", "holds"), rows)
    output.document([{"provider": each.uuid, "name": each.name, **as_json(holder)} for each, holder in found])
    return 0


COMMANDS = (usage, holders)
