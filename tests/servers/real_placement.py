"""OpenStack's own Placement over loopback HTTP; runs in the environment of the clients. Prints its port.

python real_placement.py DATABASE_URL
"""

from __future__ import annotations

import logging
import os
import socketserver
import sys
import wsgiref.simple_server


def application(connection):
    """The service as its own tests make it: without Keystone, its tables made anew."""
    from oslo_config import cfg
    from oslo_policy import opts as policy_options
    from placement import conf, db_api, deploy
    from placement.db.sqlalchemy import models

    config = cfg.ConfigOpts()
    conf.register_opts(config)
    config.set_override("connection", connection, group="placement_database")
    config.set_override("auth_strategy", "noauth2", group="api")
    policy_options.set_defaults(config, enforce_new_defaults=False)
    config([], default_config_files=[])
    config.set_override("policy_file", os.devnull, group="oslo_policy")
    db_api.configure(config)
    models.BASE.metadata.create_all(db_api.get_placement_engine())
    return deploy.loadapp(config)


class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """One thread a connection."""

    daemon_threads = True


class Handler(wsgiref.simple_server.WSGIRequestHandler):
    """Says nothing."""

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    served = wsgiref.simple_server.make_server("127.0.0.1", 0, application(sys.argv[1]), Server, Handler)
    print(served.server_port, flush=True)
    served.serve_forever()
