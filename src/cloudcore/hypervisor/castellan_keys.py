"""Passphrases of encrypted volumes, from the key manager that Cinder keeps their keys in.

That is Barbican, or what else castellan has a driver for. castellan is imported on first use:
``pip install "cloudcore[castellan]"``. It is configured as in Nova and Cinder, by oslo.config's ``[key_manager]`` and
``[barbican]``.
"""

from __future__ import annotations

import binascii
import threading
from typing import TYPE_CHECKING, Any

from cloudcore._extras import require_extra
from cloudcore._forks import leave_to_parent, when_forked
from cloudcore.errors import InvalidArgument, KeyManagerUnavailable, KeyNotFound, MissingExtra, PolicyDenied, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloudcore.disks import Disk
    from cloudcore.errors import CloudcoreError

__all__ = ["CastellanKeys"]

_UNSURE = frozenset({408, 409, 425, 429})
"""Statuses of the client's fault by their number, after which the same call may succeed."""


class CastellanKeys:
    """Gets the passphrase of a disk by the key that its volume's service names: ``passphrase`` of a hypervisor adapter.

    May be shared between threads; a forked child opens the configured key manager anew. It keeps no key: each is asked
    for when it is needed.

    Args:
        context: On whose behalf: a ``castellan.common.credentials`` object or an oslo request context. A function is
            called for one each time, since tokens expire.
        configuration: An ``oslo_config.cfg.ConfigOpts``; by default the process's ``cfg.CONF``.
        manager: A ``castellan.key_manager.KeyManager`` to ask instead of the configured one. A forked child asks the
            same: give one that keeps no connections (castellan's for Barbican keeps none, that for Vault does).
    """

    def __init__(self, context: Any | Callable[[], Any], *, configuration: Any = None, manager: Any = None) -> None:
        self._context = context
        self._configuration = configuration
        self._given = self._manager = manager
        self._mutex = threading.Lock()
        when_forked(self, CastellanKeys._part)

    def _part(self) -> None:
        """In a forked child: the connections of what was opened are its parent's."""
        leave_to_parent(self._manager)
        self._manager = self._given
        self._mutex = threading.Lock()

    def __repr__(self) -> str:
        return "<CastellanKeys>"

    def __call__(self, disk: Disk) -> bytes:
        """What opens *disk*: the bytes of its key in hexadecimal digits, as Nova and Cinder make it.

        A secret that is a passphrase already is taken as it is.

        Raises:
            InvalidArgument: *disk* is not encrypted.
            KeyNotFound: The key manager has no such key, or one without bytes.
            PolicyDenied: The key is not for those on whose behalf it was asked for.
            Refused: The key manager refused to look for the key.
            KeyManagerUnavailable: It does not answer, or not sensibly, or is not configured so that it can be asked;
                nothing was done.
            MissingExtra: castellan is not installed.
        """
        if disk.encryption is None:
            raise InvalidArgument(f"the disk of volume {disk.volume_id} is not encrypted", field="disk.encryption")
        key_id = disk.encryption.key_id or disk.encryption.secret_id
        secret, error = self._asked(key_id)
        if error is not None:  # out here it has no context that could quote a key or a token
            raise _told(key_id, error)
        passphrase = _passphrase(secret)
        if not passphrase:
            raise KeyNotFound(f"the key manager's key {key_id} has no bytes", identifier=key_id)
        return passphrase

    def _asked(self, key_id: str) -> tuple[Any, Exception | None]:
        manager = self._opened_for(key_id)
        try:
            context = self._context() if callable(self._context) else self._context
            return manager.get(context, key_id), None
        except Exception as error:  # castellan raises what its drivers and their clients raise
            return None, error

    def _opened_for(self, key_id: str) -> Any:
        try:
            return self._opened()
        except MissingExtra:
            raise
        except Exception as error:  # castellan raises what loading its driver raises
            name = type(error).__name__
        raise KeyManagerUnavailable(
            f"key {key_id} was not asked for: the key manager could not be opened ({name}); see backend in the section "
            f"[key_manager] of the configuration, and its driver's section"
        )

    def _opened(self) -> Any:
        with self._mutex:
            if self._manager is None:
                self._manager = require_extra("castellan.key_manager", "castellan").API(self._configuration)
            return self._manager


def _passphrase(secret: Any) -> bytes | None:
    encoded = secret.get_encoded()
    if not isinstance(encoded, bytes) or not encoded:
        return None
    if isinstance(secret, require_extra("castellan.common.objects.passphrase", "castellan").Passphrase):
        return encoded
    return binascii.hexlify(encoded)


def _told(key_id: str, error: Exception) -> CloudcoreError:
    """The error in our words: castellan wraps most in one class, so the causes tell what it was."""
    names = [type(one).__name__ for one in _causes(error)]
    statuses = [status for one in _causes(error) if isinstance(status := _status(one), int)]
    if "ManagedObjectNotFoundError" in names or "KeyError" in names[:1] or 404 in statuses:
        return KeyNotFound(f"the key manager has no key {key_id}", identifier=key_id)
    if {"Forbidden", "HTTPAuthError", "NotAuthorized", "Unauthorized"} & {*names} or {401, 403} & {*statuses}:
        return PolicyDenied(f"the key manager does not give out key {key_id} to whom asks", rule="key manager")
    if any(400 <= status < 500 and status not in _UNSURE for status in statuses):
        return Refused(f"the key manager refused to look for key {key_id}: status {statuses[0]}")
    return KeyManagerUnavailable(f"the key manager did not give out key {key_id}: {names[-1]}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> Any:
    return getattr(error, "status_code", None) or getattr(error, "http_status", None)
