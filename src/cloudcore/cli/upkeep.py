"""``audit`` and ``heal``: of the ledger, of the directory, of the attachments."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from cloudcore.cli.cells import cells_option
from cloudcore.cli.frame import Output, database_option, output_option
from cloudcore.cli.volumes import manager_option
from cloudcore.listing import CellRouter, InstanceDirectory, InstanceStore
from cloudcore.placement import AllocationLedger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.attach import AttachmentManager

__all__ = ["COMMANDS"]

_WRITE = click.option("--apply", "write", is_flag=True, help="Do it. Without, only what would be done is said.")


@click.group()
def audit() -> None:
    """Look for what is wrong, and change nothing. Exits with 1 if there is something."""


@click.group()
def heal() -> None:
    """Say what would put right what an audit finds; with --apply, do it. Exits with 1 if something is left."""


@audit.command("ledger")
@click.option("--directory/--no-directory", default=False, help="Also judge consumers by the instance directory.")
@database_option
@output_option
def audit_ledger(database: str, output: Output, *, directory: bool) -> int:
    """Counters, orphaned rows, finished and overdue moves, providers over capacity."""
    with ExitStack() as stack:
        ledger = stack.enter_context(AllocationLedger(database))
        known = stack.enter_context(InstanceDirectory(database)) if directory else None
        found = ledger.audit(known=known)
    return _findings(output, [(each.kind, each.subject, each.text) for each in found], found)


@heal.command("ledger")
@click.option("--directory/--no-directory", default=False, help="Also judge consumers by the instance directory.")
@_WRITE
@database_option
@output_option
def heal_ledger(database: str, output: Output, *, directory: bool, write: bool) -> int:
    """Put right what `audit ledger` finds."""
    with ExitStack() as stack:
        ledger = stack.enter_context(AllocationLedger(database))
        known = stack.enter_context(InstanceDirectory(database)) if directory else None
        repairs = ledger.heal(ledger.audit(known=known), apply=write)
    rows = [(each.action, each.finding.subject, each.reason, _done(each.applied, each.outcome)) for each in repairs]
    output.table(("action", "subject", "reason", "done"), rows)
    output.document(repairs)
    return 0 if all(each.applied for each in repairs) else 1


@audit.command("directory")
@cells_option
@output_option
def audit_directory(router: CellRouter, output: Output) -> int:
    """The directory of instances against every cell. Its database is the one of --config."""
    found = InstanceStore(router).audit()
    return _findings(output, [(each.what, each.identifier, each.detail) for each in found], found)


@heal.command("directory")
@_WRITE
@cells_option
@output_option
def heal_directory(router: CellRouter, output: Output, *, write: bool) -> int:
    """Put right what `audit directory` finds."""
    store = InstanceStore(router)
    found = store.audit()
    left = store.heal(found) if write else found
    rows = [(each.what, each.identifier, each.detail) for each in left]
    output.table(("left" if write else "would look at", "identifier", "detail"), rows)
    output.document({"found": len(found), "left": left})
    return 1 if left else 0


@audit.command("attachments")
@database_option
@manager_option
@output_option
def audit_attachments(manager: AttachmentManager, output: Output) -> int:
    """The journal against the volume service, the guests and the hosts that are named."""
    report = manager.audit()
    for host, why in report.blind:
        click.echo(f"cloudcore: {host} could not be asked: {why}", err=True)
    rows = [(each.kind, each.volume_id, f"instance {each.instance_id}, host {each.host}") for each in report.findings]
    _findings(output, rows, report)
    return 0 if report.clean else 1


@heal.command("attachments")
@_WRITE
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="Findings mended at most.")
@database_option
@manager_option
@output_option
def heal_attachments(manager: AttachmentManager, limit: int, output: Output, *, write: bool) -> int:
    """Put right what `audit attachments` finds."""
    report = manager.heal(apply=write, limit=limit)
    rows: list[tuple[Any, ...]] = [("for a person", each.kind, each.volume_id, "") for each in report.operator]
    rows += [("mended" if each in report.done else "would mend", each.kind, each.volume_id, "") for each in report.plan]
    rows += [("failed", each.kind, each.volume_id, why) for each, why in report.failed]
    output.table(("what", "kind", "volume", "why"), rows)
    output.document(report)
    left = len(report.operator) + len(report.plan) - len(report.done)
    return 1 if left or report.failed else 0


def _findings(output: Output, rows: Sequence[tuple[Any, ...]], document: Any) -> int:
    if rows:
        output.table(("finding", "subject", "detail"), rows)
    else:
        output.text("nothing is wrong")
    output.document(document)
    return 1 if rows else 0


def _done(applied: bool, outcome: str | None) -> str:
    return outcome or ("yes" if applied else "no")


COMMANDS = (audit, heal)
