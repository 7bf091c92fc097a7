"""The contract of the ledger and of bound trees on every other way to a database: the very tests of the plain ones.

PgBouncer in transaction pooling, one node of a Galera cluster, and MariaDB through its two C drivers.
"""

from __future__ import annotations

import pytest

from cloudcore.database import Database
from tests.placement import test_bound, test_ledger_calls, test_ledger_moves, test_ledger_races, test_rescheduling

ENGINES = ["pgbouncer", "galera", "mysqldb", "mariadbconnector"]
FROM = {
    test_bound: """
        open_tree
        test_allocations_of_the_ledger_are_followed
        test_edits_are_written_through_and_followed
        test_followers_keep_up_with_claims_among_edits
        test_followers_see_whole_edits_while_others_write
        test_forest_is_loaded_in_one_edit
        test_refresh_reads_one_state
        test_repeated_operation_takes_effect_once
        test_reshape_by_the_ledger_is_followed_as_an_edit
        test_two_writers_cannot_make_a_loop
    """,
    test_ledger_calls: """
        world
        test_audit_asks_a_directory_and_tells_what_is_overdue_and_over_full
        test_check_and_audit_find_what_was_broken_and_heal_mends_it
        test_claim_takes_all_it_asks
        test_group_gives_each_caller_its_own_verdict
        test_history_says_who_held_what_when
        test_over_full_provider_may_empty_or_change_hands_but_not_grow
        test_pending_claim_expires_by_the_clock_of_the_database
        test_refusal_names_provider_class_and_numbers
        test_repeat_answers_even_when_the_host_is_full_by_now
        test_replace_writes_several_consumers_at_once
        test_reshape_is_all_or_nothing
        test_usages_by_project_user_and_type
    """,
    test_ledger_moves: """
        ledger
        hosts
        test_a_migration_that_holds_nothing_for_a_while_holds_the_source_again
        test_full_destination_changes_nothing
        test_repeats_say_so
    """,
    test_ledger_races: """
        nursery
        test_churn_at_the_edge_keeps_every_rule
        test_one_move_is_ended_once
        test_two_moves_of_one_instance_never_begin_both
    """,
    test_rescheduling: """
        test_a_group_is_looked_at_again_for_each_alternate
        test_the_alternates_are_taken_in_their_order_and_then_everything_is_given_back
    """,
}
globals().update({name: getattr(module, name) for module, names in FROM.items() for name in names.split()})


@pytest.fixture(params=ENGINES)
def dialect(request: pytest.FixtureRequest) -> str:
    """Takes the place of the fixture that names the plain kinds."""
    return request.param


@pytest.fixture
def url(ledger_database: Database) -> str:
    """For other processes, which are told of the pooler by it."""
    text = ledger_database.engine.url.render_as_string(hide_password=False)
    return text if ledger_database.keeps_sessions else f"{text}?pooler=transaction"
