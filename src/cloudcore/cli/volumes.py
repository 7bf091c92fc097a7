"""``attachments`` and ``recover``: the journal of volumes, and finishing what was interrupted."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from cloudcore._extras import require_extra
from cloudcore.attach import AttachmentManager, CinderVolumes
from cloudcore.cli.frame import Output, Settings, database_option, output_option
from cloudcore.hypervisor import LibvirtHypervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["COMMANDS", "manager_option"]


def manager_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command a ``manager`` over the database, with the Cinder and the hosts of the settings' file.

    Without a Cinder there, volumes are those of :class:`cloudcore.EmbeddedVolumes` in the same database.
    """

    @click.option("--libvirt", "uris", metavar="URI", multiple=True, help="Hosts to act on, beside those of --config.")
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: Any, uris: tuple[str, ...], database: str, **options: Any) -> Any:
        settings = context.find_object(Settings) or Settings()
        with ExitStack() as stack:
            wanted = dict.fromkeys([*settings.hosts.values(), *uris])
            hosts = [stack.enter_context(LibvirtHypervisor(uri)) for uri in wanted]
            volumes = stack.enter_context(_cinder(settings.cinder)) if settings.cinder else None
            manager = stack.enter_context(AttachmentManager(database, volumes, hosts or None))
            return function(*args, manager=manager, **options)

    return command


def _cinder(values: Mapping[str, str]) -> CinderVolumes:
    chosen = dict(values)
    if "endpoint" in chosen:
        try:
            return CinderVolumes.noauth(chosen.pop("endpoint"), project_id=chosen.pop("project_id"), **chosen)
        except KeyError as error:
            raise click.UsageError(f"[cinder] in the file of --config lacks {error}") from error
    region = chosen.pop("region_name", None)
    passwords = require_extra("keystoneauth1.identity", "cinder")
    sessions = require_extra("keystoneauth1.session", "cinder")
    try:
        account = passwords.Password(**{"user_domain_id": "default", "project_domain_id": "default", **chosen})
    except TypeError as error:
        raise click.UsageError(f"[cinder] in the file of --config: {error}") from error
    return CinderVolumes(sessions.Session(auth=account), service_auth=account, region_name=region)


@click.command()
@click.option("--volume", metavar="UUID", help="Of this volume only.")
@click.option("--instance", metavar="UUID", help="Of this instance only.")
@click.option("--host", metavar="NAME", help="On this host only.")
@database_option
@output_option
def attachments(volume: str | None, instance: str | None, host: str | None, database: str, output: Output) -> int:
    """List the attachments that the journal knows, oldest first."""
    with AttachmentManager(database) as manager:
        found = manager.attachments(volume_id=volume, instance_id=instance, host=host)
    rows = [(one.id, one.volume_id, one.instance_id, one.host, one.state, one.mode, one.note) for one in found]
    output.table(("id", "volume", "instance", "host", "state", "mode", "note"), rows)
    output.document([_public(one) for one in found])
    return 0


def _public(one: Any) -> dict[str, Any]:
    """Without what names devices and addresses of hosts."""
    names = ("id", "volume_id", "instance_id", "host", "state", "mode", "role", "note", "created_at", "updated_at")
    return {name: getattr(one, name) for name in names}


@click.command()
@database_option
@manager_option
@output_option
def recover(manager: AttachmentManager, output: Output) -> int:
    """Finish or undo every attach, detach and move that was interrupted, on the hosts that are named.

    Exits with 1 if something is left: the reason stands beside it.
    """
    report = manager.recover()
    output.text(
        f"settled {len(report.settled)}, waiting for their guests {len(report.waiting)}, left {len(report.left)}"
    )
    output.table(("left", "why"), report.left) if report.left else None
    output.document(
        {
            "settled": [_public(one) for one in report.settled],
            "waiting": [_public(one) for one in report.waiting],
            "left": [{"subject": subject, "why": why} for subject, why in report.left],
        }
    )
    return 0 if report.complete else 1


COMMANDS = (attachments, recover)
