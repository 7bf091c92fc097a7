"""The application behind keystonemiddleware, for a WSGI server. Needs ``keystonemiddleware`` and ``a2wsgi``.

    PLACEMENT_KEYSTONE=keystone.conf gunicorn -w 4 -b :8778 'placement_api.wsgi:create_application()'

``keystone.conf`` has the section ``[keystone_authtoken]`` as every OpenStack service has it: ``auth_url``,
``auth_type``, ``username``, ``password``, ``project_name``, …
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from typing import Any

from a2wsgi import ASGIMiddleware
from keystonemiddleware.auth_token import AuthProtocol
from placement_api.app import create_app


def settings_of(path: str) -> dict[str, str]:
    """What a file says of Keystone.

    Raises:
        ValueError: It cannot be read, or has no such section.
    """
    parser = ConfigParser(interpolation=None)
    if not parser.read(path) or "keystone_authtoken" not in parser:
        raise ValueError(f"PLACEMENT_KEYSTONE: {path} is no file with a section [keystone_authtoken]")
    return dict(parser["keystone_authtoken"])


def create_application(settings: Mapping[str, str] | None = None, **options: Any) -> Any:
    """The application; *settings* as in that section, *options* as :func:`~placement_api.app.create_app` has them.

    The middleware checks each token, and the headers that say who asks are its own: what a client says of itself in
    them is dropped. Who has no token goes through to the application, which shows the list of versions to anybody.
    """
    given = settings_of(os.environ.get("PLACEMENT_KEYSTONE", "keystone.conf")) if settings is None else settings
    application: Any = create_app(**{"auth": "keystone", **options})
    return AuthProtocol(_Told(ASGIMiddleware(application)), {"delay_auth_decision": "true", **given})


class _Told:
    """Leaves out headers that are not there: set to None by the middleware, which WSGI does not allow, or empty."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __call__(self, environ: Mapping[str, Any], start_response: Any) -> Any:
        empty = [name for name in ("CONTENT_LENGTH", "CONTENT_TYPE") if not environ.get(name)]
        told = {name: value for name, value in environ.items() if value is not None and name not in empty}
        return self._application(told, start_response)
