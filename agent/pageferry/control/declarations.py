"""The commands and events of the control socket, declared. The daemon implements them."""

from __future__ import annotations

from typing import Final

from pageferry.control import types
from pageferry.control.registry import Declaration
from pageferry.control.schema import BOOL, INT, NUMBER, SIZE, STR, Array, EventType, Member, Struct

_GUEST: Final = Member("guest", STR, "its name, or the absolute path of its QMP socket")
_GUEST_OR_ANY: Final = Member("guest", STR, "the last migration of this guest", optional=True)
_ID_OR_ANY: Final = Member("migration-id", STR, "the migration of this ID", optional=True)

CAPABILITIES: Final = Declaration(
    "qmp_capabilities",
    "Leave negotiation mode. Before it every other command is answered with CommandNotFound.",
    (Member("enable", Array(STR), "none is offered", optional=True),),
)

QUERY_VERSION: Final = Declaration("query-version", "The daemon's version.", returns=types.VERSION)
QUERY_COMMANDS: Final = Declaration(
    "query-commands", "The names of all commands.", returns=Array(types.COMMAND_INFO)
)
QUERY_QMP_SCHEMA: Final = Declaration(
    "query-qmp-schema",
    "All commands, events and their types, in the form of QAPI's introspection.",
    returns=Array(types.SCHEMA_INFO),
)

QUERY_STATUS: Final = Declaration(
    "query-status", "The state of the daemon.", returns=types.DAEMON_STATUS
)
QUERY_GUESTS: Final = Declaration(
    "query-guests", "The guests of this host.", returns=Array(types.GUEST_INFO)
)
MIGRATE: Final = Declaration(
    "migrate",
    "Start a migration. Answers at once with its ID; events and query-migrate tell the rest.",
    (
        _GUEST,
        Member("uri", STR, "the other agent: HOST or HOST:PORT, also with tcp: in front"),
        Member("destination-guest", STR, "the guest's name there, if another", optional=True),
        Member("parameters", types.MIGRATE_PARAMETERS, "for this migration", optional=True),
    ),
    Struct("MigrationStarted", (Member("migration-id", STR),)),
)
MIGRATE_CANCEL: Final = Declaration(
    "migrate-cancel",
    "Ask for a migration to be cancelled: the only one, or the one named. Its status tells when it"
    " has been. An error when it is over, or committed.",
    (_ID_OR_ANY, _GUEST_OR_ANY),
)
QUERY_MIGRATE: Final = Declaration(
    "query-migrate",
    "One migration: of this ID, the last of this guest, or the last of all. Those that are over are"
    " remembered across restarts, by ID and by guest.",
    (_ID_OR_ANY, _GUEST_OR_ANY),
    types.MIGRATION_INFO,
)
QUERY_MIGRATIONS: Final = Declaration(
    "query-migrations",
    "All migrations since the daemon started that it remembers, oldest first.",
    returns=Array(types.MIGRATION_INFO),
)
QUERY_MIGRATE_HISTORY: Final = Declaration(
    "query-migrate-history",
    "Migrations that are over, newest first, also from before the daemon started.",
    (
        Member("guest", STR, "only those of this guest", optional=True),
        Member("limit", INT, "at most so many; 100 unless given", optional=True),
    ),
    Array(types.HISTORY_ENTRY),
)
MIGRATE_SET_PARAMETERS: Final = Declaration(
    "migrate-set-parameters",
    "Set parameters of a running migration, or else of those that start from now on.",
    (_ID_OR_ANY, _GUEST_OR_ANY, *types.PARAMETERS),
)
QUERY_MIGRATE_PARAMETERS: Final = Declaration(
    "query-migrate-parameters",
    "The parameters of a migration, or else of those that start from now on.",
    (_ID_OR_ANY, _GUEST_OR_ANY),
    types.MIGRATE_PARAMETERS,
)
MIGRATE_RECOVER: Final = Declaration(
    "migrate-recover",
    "Settle a migration whose outcome is unknown, or all that are left over on this host. The"
    " daemon does so by itself too, and goes on trying; this does it now, and says what it found.",
    (
        _ID_OR_ANY,
        Member("dry-run", BOOL, "only look, and say what would be done", optional=True),
        Member(
            "destination-is-gone",
            STR,
            "the guest's name, which confirms that the destination's host is switched off or fenced"
            " for good: take the guest back without its answer. If that is not true the guest may"
            " run twice",
            optional=True,
        ),
        Member(
            "leave-paused",
            BOOL,
            "with destination-is-gone: do not let it run yet",
            optional=True,
        ),
    ),
    Array(types.SETTLEMENT),
)
QUERY_RESIDENCY: Final = Declaration(
    "query-residency",
    "How much of the guest's RAM is resident, swapped, or a hole. Reads nothing of it in.",
    (
        _GUEST,
        Member("cells", INT, "also a map of each block in so many cells at most", optional=True),
    ),
    types.RESIDENCY,
)
MIGRATE_ESTIMATE: Final = Declaration(
    "migrate-estimate",
    "What a migration of this guest would cost, without migrating. Its writes are tracked for the"
    " sample: a minor fault for the first write to each page every 0.1 s.",
    (
        _GUEST,
        Member("sample-time", NUMBER, "seconds, from 0.2 to 60; 2 unless given", optional=True),
        Member("bandwidth", SIZE, "bytes per second of the network", optional=True),
        Member("swap-bandwidth", SIZE, "bytes per second of swap", optional=True),
        Member("parameters", types.MIGRATE_PARAMETERS, "of that migration", optional=True),
    ),
    types.ESTIMATE,
    features=("unstable",),
)
QUERY_DOCTOR: Final = Declaration(
    "query-doctor",
    "Try everything that a migration needs, and say what is missing and what to do.",
    (
        Member("guest", STR, "only this guest, beside the host", optional=True),
        Member(
            "uri",
            STR,
            "also look at this destination, for the guest",
            optional=True,
        ),
        Member("destination-guest", STR, "the guest's name there, if another", optional=True),
    ),
    Array(types.CHECK),
)

_IDENTITY: Final = (
    Member("migration-id", STR, ""),
    Member("guest", STR, ""),
    Member("role", types.ROLE, ""),
)

EVENTS: Final = (
    EventType(
        "MIGRATION_SETTLED",
        (
            Member("phase", STR, "as the journal has it now"),
            Member("message", STR, "where the guest is"),
            *_IDENTITY,
        ),
        "What a migration without a worker had left open was settled.",
    ),
    EventType(
        "MIGRATION",
        (Member("status", types.STATUS, ""), *_IDENTITY),
        "The status has changed.",
    ),
    EventType(
        "MIGRATION_PASS",
        (Member("pass", INT, "from 1"), *_IDENTITY),
        "A round begins.",
    ),
    EventType(
        "MIGRATION_RESIDENCY",
        (
            Member("phase", STR, ""),
            *(member for member in types.RESIDENCY_COUNTS if member.name != "way"),
            Member("elapsed", NUMBER, "milliseconds since the migration began"),
            *_IDENTITY,
        ),
        "What was paged in and out so far; at most once a second, and only when it has changed.",
    ),
)
