"""Databases: engines, transactions that take effect once, and what differs between the dialects.

Every area keeps its state through a :class:`Database`:

* :meth:`Database.read` gives a connection whose statements see one snapshot (SQLite) or committed rows (the others);
* :meth:`Database.write` gives one transaction, one attempt;
* :meth:`Database.run` repeats a transaction on deadlocks and lost connections, as long as nothing was committed;
* :meth:`Database.operate` does the same under an *operation id*: the id and the result are stored in the transaction
  that has the effect, so any call may be repeated after a lost answer and takes effect once.

A connection lost while COMMIT was under way leaves an unknown outcome. ``operate`` resolves it by inserting the id
again: the database makes that insert wait for the lost transaction, then it either finds the stored result or starts
afresh. ``run`` cannot know and raises :class:`~cloudcore.errors.OutcomeUnknown`.

Each module holds one of these ideas: :mod:`~cloudcore.database.column_types`, :mod:`~cloudcore.database.engines`,
:mod:`~cloudcore.database.dialects`, :mod:`~cloudcore.database.driver_errors`, :mod:`~cloudcore.database.retrying`,
:mod:`~cloudcore.database.exactly_once`, and :mod:`~cloudcore.database.transactions`, which brings them together.
"""

from cloudcore.database.column_types import Instant, Json, Text, Uuid, metadata, utc_now
from cloudcore.database.dialects import hold, insert_ignoring_duplicates
from cloudcore.database.driver_errors import misses_name, session_is_lost, translate
from cloudcore.database.engines import PoolerMode, open_engine
from cloudcore.database.exactly_once import Operation, Outcome, operations
from cloudcore.database.retrying import RetryPolicy
from cloudcore.database.sessions import at_rest
from cloudcore.database.table_creation import create_tables
from cloudcore.database.transactions import Database

__all__ = [
    "Database",
    "Instant",
    "Json",
    "Operation",
    "Outcome",
    "PoolerMode",
    "RetryPolicy",
    "Text",
    "Uuid",
    "at_rest",
    "create_tables",
    "hold",
    "insert_ignoring_duplicates",
    "metadata",
    "misses_name",
    "open_engine",
    "operations",
    "session_is_lost",
    "translate",
    "utc_now",
]
