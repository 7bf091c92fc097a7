"""os-brick as this process uses it: set up once, called, and its errors told in our words."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from typing import TYPE_CHECKING, Any

from cloudcore._extras import require_extra
from cloudcore._forks import when_forked
from cloudcore.errors import (
    CloudcoreError,
    DeviceNotFound,
    FlushFailed,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
    UnsupportedFeature,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.attach.volumes.values import ConnectionInfo

__all__ = ["Brick", "guarded"]

_NOT_FOUND = frozenset({"TargetPortalNotFound", "TargetPortalsNotFound", "VolumeDeviceNotFound", "VolumePathsNotFound"})
_NOT_KNOWN = frozenset({"InvalidConnectorProtocol", "NotImplementedError", "ProtocolNotSupported"})
_FLUSHES = ("--flushbufs", "multipath -f ")
"""In the commands with which os-brick brings to the volume what the host holds back."""

_mutex = threading.Lock()
_set_up: tuple[str, str | None] | None = None
"""Lock path and root helper that this process's os-brick was given: its settings are global."""


class Brick:
    """os-brick's functions, after :func:`_load`. May be shared between threads.

    Args:
        lock_path: Directory of its lock files.
        root_helper: What starts its privileged helper; None where this process is privileged itself.
        module: A stand-in for ``os_brick.initiator.connector``.
    """

    def __init__(self, lock_path: str, root_helper: str | None, module: Any = None) -> None:
        self._lock_path = lock_path
        self._root_helper = root_helper
        self._module = module
        when_forked(self, Brick._part)

    def _part(self) -> None:
        """In a forked child: no lock that a thread of its parent has, and a privileged helper of its own on demand.

        A call to the parent's would wait for an answer that only a thread of the parent reads.
        """
        global _mutex
        _mutex = threading.Lock()
        if locks := sys.modules.get("oslo_concurrency.lockutils"):
            locks._semaphores.__init__()  # noqa: SLF001 - of threads; locks of files are the kernel's, a process's own
        if "os_brick.privileged" in sys.modules:
            for context in _contexts():
                context.start_lock = threading.Lock()
                if context.channel is not None:
                    context.channel.writer.writesock.close()  # the child's end alone, and without a farewell
                    context.channel = None

    def properties(self, ip: str, multipath: bool, enforce_multipath: bool, host: str) -> dict[str, Any]:
        """What it reports of this host.

        Raises:
            Unavailable: It, or its privileged helper, failed.
        """
        report, name = self._loaded().get_connector_properties, ""
        try:
            found: dict[str, Any] = report(self._root_helper or "", ip, multipath, enforce_multipath, host=host)
        except Exception as error:  # os-brick raises what its tools raise
            name = type(error).__name__
        else:
            return found
        raise Unavailable(f"os-brick could not describe host {host} ({name}): see what its root_helper says")

    def connector(self, kind: str, **options: Any) -> Any:
        """Its connector for a kind of connection."""
        return self._loaded().InitiatorConnector.factory(kind, self._root_helper or "", **options)

    def _loaded(self) -> Any:
        if self._module is None:
            with _mutex:
                _load(self._lock_path, self._root_helper)
            self._module = require_extra("os_brick.initiator.connector", "brick")
        return self._module


def _load(lock_path: str, root_helper: str | None) -> None:
    """Give os-brick its settings, before it is used in this process.

    Raises:
        InvalidArgument: It has others already, ours or its owner's.
    """
    global _set_up
    wanted = os.path.abspath(lock_path), root_helper
    if _set_up not in {None, wanted}:
        raise InvalidArgument(
            f"os-brick's settings are one for a process: it was set up with lock_path and root_helper {_set_up}, and "
            f"is asked for {wanted}",
            field="lock_path",
            value=lock_path,
        )
    settings = require_extra("os_brick.opts", "brick").cfg.CONF
    present = settings.os_brick.lock_path
    if present is not None and os.path.abspath(present) != wanted[0]:
        raise InvalidArgument(
            f"this process's configuration has [os_brick] lock_path = {present}, and lock_path is {lock_path}: with "
            f"two of them, devices are taken away under their users",
            field="lock_path",
            value=lock_path,
        )
    settings.set_default("lock_path", wanted[0], "os_brick")
    if root_helper is None:
        for context in _contexts():
            context.set_client_mode(False)
    else:
        require_extra("oslo_privsep.priv_context", "brick").init(shlex.split(root_helper))
    _set_up = wanted


def _contexts() -> tuple[Any, Any]:
    """Of os-brick's privileged calls: each has a helper process, once one was started."""
    privileged = require_extra("os_brick.privileged", "brick")
    return privileged.default, privileged.brick_privsep_hide_output


def guarded(
    verb: str,
    info: ConnectionInfo,
    call: Callable[[], Any],
    must_have_paths: Any = None,
    *,
    gone_is_done: bool = False,
) -> Any:
    """Call os-brick. Its errors may quote what it was given, so only their class is passed on.

    Args:
        verb: What is done, as in "could not ... it".
        info: To what.
        call: Do it.
        must_have_paths: A connector that must have several paths, None if that is not asked.
        gone_is_done: A device that is not there is what was wanted.
    """
    try:
        return call()
    except CloudcoreError:
        raise
    except Exception as error:  # os-brick raises what its tools raise
        name = type(error).__name__
        if name in _NOT_FOUND and gone_is_done:
            return None
        told = _told(verb, info, error, must_have_paths)
    raise told  # out here it has no context that could quote a secret


def _told(verb: str, info: ConnectionInfo, error: Exception, must_have_paths: Any) -> CloudcoreError:
    name = type(error).__name__
    failed = (
        f"volume {info.volume_id}: os-brick could not {verb} it ({info.kind}: {name}); see os-brick's log on the host"
    )
    if name in _NOT_FOUND:
        return DeviceNotFound(failed, identifier=info.volume_id)
    if name in _NOT_KNOWN:
        return UnsupportedFeature(failed, needed=info.kind)
    if must_have_paths is not None and not must_have_paths.supports_multipath():
        return UnsupportedFeature(
            f"a volume of kind {info.kind} must have several paths, and multipathd does not run on this host",
            needed="multipath",
        )
    command = getattr(error, "cmd", None)
    command = command if isinstance(command, str) else " ".join(map(str, command or ()))
    if any(flush in command for flush in _FLUSHES):
        return FlushFailed(
            f"volume {info.volume_id}: what was written could not be brought to it; its device is kept. Mend the path "
            f"to the storage and repeat it",
            identifier=info.volume_id,
        )
    return OutcomeUnknown(f"{failed}, and repeat")
