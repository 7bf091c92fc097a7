"""``audit`` and ``heal`` of the ledger, of the directory, of the attachments; and ``prune``."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import click

from cloudcore.cli.cells import cells_option
from cloudcore.cli.frame import Output, database_option, output_option, warn
from cloudcore.cli.volumes import manager_option
from cloudcore.listing import CellRouter, InstanceDirectory, InstanceStore
from cloudcore.placement import AllocationLedger
from cloudcore.pruning import upkeep

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
        warn(f"{host} could not be asked: {why}")
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


class _Age(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of Click only
    """A time ago, such as 30d, 12h or 45m."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        units = {"d": "days", "h": "hours", "m": "minutes"}
        if isinstance(value, timedelta):
            return value
        number, unit = value[:-1], units.get(value[-1:])
        if unit is None or not number.isdecimal() or not 0 < int(number) < 100_000:
            self.fail(f"{value!r}: expected a number and d, h or m, such as 30d", param, ctx)
        return timedelta(**{unit: int(number)})


@click.command()
@click.option("--older-than", type=_Age(), required=True, help="Such as 30d: later than anybody repeats a call.")
@click.option("--keep-changes", type=click.IntRange(min=0), default=100_000, show_default=True)
@database_option
@output_option
def prune(database: str, older_than: timedelta, keep_changes: int, output: Output) -> int:
    """Forget operation ids, history, changes, attempts and past attachments that are old."""
    done = upkeep(database, older_than=datetime.now(UTC) - older_than, keep_changes=keep_changes)
    output.table(("forgotten", "rows"), list(attrs.asdict(done).items()))
    output.document(done)
    return 0


def _findings(output: Output, rows: Sequence[tuple[Any, ...]], document: Any) -> int:
    if rows:
        output.table(("finding", "subject", "detail"), rows)
    else:
        output.text("nothing is wrong")
    output.document(document)
    return 1 if rows else 0


def _done(applied: bool, outcome: str | None) -> str:
    return outcome or ("yes" if applied else "no")


COMMANDS = (audit, heal, prune)
