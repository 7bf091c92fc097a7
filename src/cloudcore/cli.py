"""The command line: ``cloudcore doctor``, ``cloudcore schema``, ``cloudcore demo``."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudcore.errors import CloudcoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not as it should be, 2 wrong usage."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except CloudcoreError as error:
        print(f"cloudcore: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloudcore", description="A cloud's control-plane logic, as a library.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what is installed and reachable, and the line that mends the rest")
    doctor.add_argument("--database", metavar="URL", action="append", default=[], help="also try this database")
    doctor.add_argument("--libvirt", metavar="URI", action="append", default=[], help="also try this hypervisor")
    doctor.add_argument("--cinder", metavar="URL", help="also try this Cinder, e.g. http://127.0.0.1:8776")
    doctor.set_defaults(run=_doctor)

    schema = commands.add_parser("schema", help="create, upgrade or check the tables of a database")
    actions = schema.add_subparsers(required=True, metavar="ACTION")
    for name, text, run in (
        ("upgrade", "bring the tables to this release", _schema_upgrade),
        ("check", "say whether the tables are those of this release", _schema_check),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--database", metavar="URL", required=True)
        action.set_defaults(run=run)

    demo = commands.add_parser("demo", help="run the tour: hosts, claims, moves, volumes, listing")
    demo.add_argument("--database", metavar="URL", help="an empty database for placement; SQLite in a scratch folder")
    demo.add_argument("--picture", metavar="FILE", default="cloudcore-host.svg", help="where to draw one host")
    demo.set_defaults(run=_demo)
    return parser


def _doctor(parsed: argparse.Namespace) -> int:
    from cloudcore.doctor import State, examine

    findings = examine(databases=tuple(parsed.database), hypervisors=tuple(parsed.libvirt), cinder=parsed.cinder)
    worst = 0
    for finding in findings:
        cure = f"  →  {finding.cure}" if finding.cure else ""
        print(f"{finding.state:<12} {finding.part:<22} {finding.detail}{cure}", flush=True)
        asked_for = finding.part not in {"test:///default", "qemu:///system"}
        if finding.state is State.BROKEN or (finding.state is State.UNREACHABLE and asked_for):
            worst = 1
    return worst


def _schema_upgrade(parsed: argparse.Namespace) -> int:
    from cloudcore.schema import upgrade_schema

    state = upgrade_schema(parsed.database)
    print(f"the tables are at revision {state.revision}")
    return _report(state.differences)


def _schema_check(parsed: argparse.Namespace) -> int:
    from cloudcore.schema import check_schema

    state = check_schema(parsed.database)
    print(f"revision {state.revision or 'none'}, this release has {state.head}")
    return _report(state.differences)


def _report(differences: tuple[str, ...]) -> int:
    for difference in differences:
        print(f"differs: {difference}")
    return 1 if differences else 0


def _demo(parsed: argparse.Namespace) -> int:
    story = Path(__file__).with_name("_quickstart.py")  # in a wheel
    if not story.exists():
        story = Path(__file__).parents[2] / "examples" / "quickstart.py"  # in a checkout
    tell = runpy.run_path(str(story))["main"]
    database = ["--database", parsed.database] if parsed.database else []
    code: int = tell([*database, "--picture", parsed.picture])
    return code
