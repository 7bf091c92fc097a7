"""``doctor``, ``schema`` and ``demo``: what is installed, the tables, and the tour."""

from __future__ import annotations

import os
import runpy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs
import click

from cloudcore._extras import require_extra
from cloudcore.cli.frame import Output, Settings, database_option, output_option, pass_settings
from cloudcore.doctor import State, examine
from cloudcore.schema import check_schema, upgrade_schema

if TYPE_CHECKING:
    from cloudcore.schema import SchemaState

__all__ = ["COMMANDS"]


@click.command()
@click.option(
    "--database", "databases", metavar="URL", multiple=True, help="Also try this database.  [$CLOUDCORE_DATABASE]"
)
@click.option("--libvirt", "hypervisors", metavar="URI", multiple=True, help="Also try this hypervisor.")
@click.option("--cinder", metavar="URL", help="Also try this Cinder, e.g. http://127.0.0.1:8776")
@output_option
@pass_settings
def doctor(
    settings: Settings, databases: tuple[str, ...], hypervisors: tuple[str, ...], cinder: str | None, output: Output
) -> int:
    """Say what is installed and reachable, and the line that mends the rest.

    Exits with 1 if something that cloudcore needs is missing, or something that was asked for does not answer.
    """
    usual = os.environ.get("CLOUDCORE_DATABASE") or settings.database  # by hand: click would split it at spaces
    if not databases and usual:
        databases = (usual,)
    worst, findings = 0, []
    for finding in examine(databases=databases, hypervisors=hypervisors, cinder=cinder):
        cure = f"  →  {finding.cure}" if finding.cure else ""
        output.text(f"{finding.state:<12} {finding.part:<22} {finding.detail}{cure}")
        findings.append(attrs.asdict(finding))
        if finding.state is State.BROKEN or (finding.asked_for and finding.state is not State.OK):
            worst = 1
    output.document(findings)
    return worst


@click.group()
def schema() -> None:
    """Create, upgrade or check the tables of a database."""


@schema.command()
@partial(database_option, may_make=True)
@output_option
def upgrade(database: str, output: Output) -> int:
    """Bring the tables to this release."""
    state = upgrade_schema(database)
    output.text(f"the tables are at revision {state.revision}")
    return _report(state, output)


@schema.command()
@database_option
@output_option
def check(database: str, output: Output) -> int:
    """Say whether the tables are those of this release. Changes nothing, and makes no file."""
    state = check_schema(database)
    output.text(f"revision {state.revision or 'none'}, this release has {state.head}")
    return _report(state, output)


def _report(state: SchemaState, output: Output) -> int:
    for difference in state.differences:
        output.text(f"differs: {difference}")
    output.document(state)
    return 0 if state.current else 1


@click.command()
@click.option("--database", metavar="URL", help="An empty database for placement; else SQLite in a scratch folder.")
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw one host there.",
)
def demo(database: str | None, picture: Path | None) -> int:
    """Run the tour: hosts, claims, moves, volumes, listing."""
    require_extra("rich", "cli")
    if picture is not None and not picture.parent.is_dir():
        raise click.BadParameter(f"{picture}: there is no folder {picture.parent}", param_hint="--picture")
    package = Path(__file__).parents[1]
    story = package / "_quickstart.py"  # in a wheel
    if not story.exists():
        story = package.parents[1] / "examples" / "quickstart.py"  # in a checkout
    tour = runpy.run_path(str(story))
    tour["console"].on_broken_pipe = _reader_gone
    chosen = ["--database", database] if database else []
    code: int = tour["main"]([*chosen, *(["--picture", str(picture)] if picture else [])])
    return code


def _reader_gone() -> NoReturn:
    """Rich would end the process with 1."""
    raise BrokenPipeError


COMMANDS = (doctor, schema, demo)
