"""The commands together, their settings, and what click's own errors become."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudcore.cli import exit_codes
from cloudcore.cli.frame import Settings, read_toml
from cloudcore.cli.holdings import COMMANDS as HOLDINGS
from cloudcore.cli.instances import COMMANDS as INSTANCES
from cloudcore.cli.machine import COMMANDS as MACHINE
from cloudcore.cli.moving import COMMANDS as MOVING
from cloudcore.cli.trees import COMMANDS as TREES
from cloudcore.cli.upkeep import COMMANDS as UPKEEP
from cloudcore.cli.volumes import COMMANDS as VOLUMES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["program", "run"]


@click.group(name="cloudcore", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="CLOUDCORE_CONFIG",
    help="TOML file: database, json, and tables cells, cinder, hosts.",
)
@click.version_option(package_name="cloudcore", message="%(version)s")
@click.pass_context
def program(context: click.Context, config: Path | None) -> None:
    """A cloud's control-plane logic, as a library. Exit codes: see `cloudcore help-exit-codes`."""
    context.obj = Settings.of({} if config is None else read_toml(config, "--config"), str(config))


@program.command("help-exit-codes")
def _exit_codes() -> int:
    """Say what the exit codes mean."""
    text = exit_codes.__doc__ or ""
    click.echo("\n".join(line for line in text.splitlines() if line[:1].isdigit()))
    return 0


@program.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion(shell: str) -> int:
    """Print what makes SHELL complete commands and options: `eval "$(cloudcore completion bash)"`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(program, {}, "cloudcore", "_CLOUDCORE_COMPLETE").source())
    return 0


for _commands in (MACHINE, TREES, HOLDINGS, MOVING, INSTANCES, UPKEEP, VOLUMES):
    for _command in _commands:
        program.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What click finds wrong is said in its words and is wrong usage."""
    if "_CLOUDCORE_COMPLETE" in os.environ:
        program.main(prog_name="cloudcore")  # answers the shell, and ends the process
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with program.make_context("cloudcore", given) as context:  # not main(): it keeps a gone reader to itself
            code = program.invoke(context)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        error.show()
        return 2
    return code if isinstance(code, int) else 0
