"""Which cells: the options for them, and a router over what they name."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudcore.cli.frame import Settings, read_toml
from cloudcore.database.addresses import missing_file
from cloudcore.listing import NOVA_INSTANCES, Cell, CellRouter, InstanceDirectory, NovaDirectory
from cloudcore.schema import require_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["cells_option", "open_router"]


def cells_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names cells and their directory; give the command a ``router`` over them."""

    @click.option("--cell", "single", metavar="NAME=URL", multiple=True, help="A cell. May be repeated.")
    @click.option(
        "--cells",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file: NAME = URL, one line a cell.",
    )
    @click.option("--nova-api", metavar="URL", envvar="CLOUDCORE_NOVA_API", help="Nova's API database: it knows them.")
    @click.option("--nova-main", metavar="URL", help="What fills templates of cell mappings, as Nova's own setting.")
    @click.option(
        "--database", metavar="URL", envvar="CLOUDCORE_DATABASE", help="The directory's.  [$CLOUDCORE_DATABASE]"
    )
    @click.pass_context
    @functools.wraps(function)
    def command(
        context: click.Context,
        /,
        *args: Any,
        database: str | None,
        single: tuple[str, ...],
        file: Path | None,
        nova_api: str | None,
        nova_main: str | None,
        **options: Any,
    ) -> Any:
        settings = context.find_object(Settings) or Settings()
        named = {**(_read(file) if file else settings.cells), **_split(single)}
        if nova_api is None and not named:
            raise click.UsageError(
                "which cells? Give --cell NAME=URL, --cells FILE, --nova-api URL, or [cells] in the file of --config"
            )
        kept = database or settings.database
        if kept and nova_api is None:
            require_file(kept)
        if nova_api is not None and missing_file(nova_api) is not None:
            raise click.BadParameter(f"{missing_file(nova_api)}: there is no such file", param_hint="--nova-api")
        with ExitStack() as stack:
            if nova_api is not None:
                directory = stack.enter_context(NovaDirectory(nova_api, main_database=nova_main))
                router = CellRouter(directory.cells(), directory=directory, source=NOVA_INSTANCES)
            else:
                router = open_router(stack, named, kept)
            return function(*args, router=stack.enter_context(router), **options)

    return command


def open_router(stack: ExitStack, cells: Mapping[str, str], directory: str | None) -> CellRouter:
    """A router over *cells* (name → URL), with the directory in the database *directory* if one is given."""
    kept = stack.enter_context(InstanceDirectory(directory)) if directory else None
    return CellRouter([Cell(name, url) for name, url in cells.items()], directory=kept)


def _split(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, url = text.partition("=")
        if not (name and equals and url):
            raise click.BadParameter(f"{text!r} is not NAME=URL", param_hint="--cell")
        if name in found:
            raise click.BadParameter(f"{name!r} is named twice", param_hint="--cell")
        found[name] = url
    return found


def _read(file: Path) -> dict[str, str]:
    values = read_toml(file, "--cells")
    found = values.get("cells", values)
    if not isinstance(found, dict) or not found or not all(isinstance(url, str) for url in found.values()):
        raise click.BadParameter(f'{file}: expected lines NAME = "URL"', param_hint="--cells")
    return found
