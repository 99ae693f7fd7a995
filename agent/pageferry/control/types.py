"""The types that commands and events of the control socket are made of.

Names are QAPI's (qapi/migration.json) where they mean the same; times are in milliseconds there,
sizes in bytes. What is ours beside them says so by its name or stands in an object of its own.
"""

from __future__ import annotations

from typing import Final

from pageferry.control.schema import (
    ANY,
    BOOL,
    INT,
    NUMBER,
    SIZE,
    STR,
    Array,
    Enum,
    Member,
    Struct,
    Type,
)
from pageferry.model.parameters import (
    COMPRESSION_MODES,
    NO_CONVERGENCE_CHOICES,
    RESIDENCY_WAYS,
)
from pageferry.model.verdict import Verdict


def _optional(name: str, kind: Type, doc: str) -> Member:
    return Member(name, kind, doc, optional=True)


ROLE: Final = Enum("MigrationRole", ("source", "destination"), "which side of it this host is")

STATUS: Final = Enum(
    "MigrationStatus",
    (
        *("none", "setup", "cancelling", "cancelled", "active"),
        *("completed", "failed", "pre-switchover", "device"),
    ),
    "QAPI's states, as far as they occur; the last three words are completed, failed, cancelled",
)

WAY: Final = Enum("ResidencyWay", RESIDENCY_WAYS, "how it is learnt who is swapped, best first")

COMPRESSION: Final = Enum("Compression", COMPRESSION_MODES, "when pages are packed")

NO_CONVERGENCE: Final = Enum(
    "NoConvergence",
    NO_CONVERGENCE_CHOICES,
    "give up and leave the guest where it is, go on until something changes, or switch over"
    " with the downtime that it takes",
)

PARAMETERS: Final = (
    _optional("downtime-limit", INT, "longest downtime to aim for, in milliseconds"),
    _optional(
        "page-in-window",
        SIZE,
        "bytes of cold pages that may be in memory at a time; 0, or not given: by the headroom",
    ),
    _optional("channels", INT, "data connections"),
    _optional("max-rounds", INT, "rounds after which on-no-convergence says what to do"),
    _optional("residency-way", WAY, "the best that works, unless given"),
    _optional("verify", BOOL, "compare a hash of all memory while the guest is stopped"),
    _optional("timeout", NUMBER, "give up after so many seconds; 0, or not given: never"),
    _optional("compression", COMPRESSION, "pack pages by zstd: never, where faster, where smaller"),
    _optional("compression-level", INT, "zstd's level, -7 to 19"),
    _optional("max-bandwidth", SIZE, "bytes per second on all data connections; 0: no limit"),
    _optional(
        "max-swap-bandwidth",
        SIZE,
        "bytes per second to page in, as many being paged out again; 0: no limit",
    ),
    _optional(
        "swap-pacing", BOOL, "page in less while that slows down what others on the host read"
    ),
    _optional("auto-converge", BOOL, "the guest's vCPUs may be throttled; off by default"),
    _optional("cpu-throttle-initial", INT, "percent of the vCPUs' time taken at first"),
    _optional("cpu-throttle-increment", INT, "percent more taken while rounds do not shrink"),
    _optional("max-cpu-throttle", INT, "percent that are never exceeded"),
    _optional("on-no-convergence", NO_CONVERGENCE, "what to do after max-rounds"),
)
"""What may be set for a migration. model/parameters.py has defaults and limits."""

MIGRATE_PARAMETERS: Final = Struct("MigrateParameters", PARAMETERS)

VERSION: Final = Struct(
    "VersionInfo",
    (
        Member(
            "qemu",
            Struct("VersionTriple", tuple(Member(k, INT) for k in ("major", "minor", "micro"))),
            "pageferry's version, where clients of QMP look for one",
        ),
        Member("package", STR, "the same in words"),
    ),
)

COMMAND_INFO: Final = Struct("CommandInfo", (Member("name", STR),))

SCHEMA_INFO: Final = Struct(
    "SchemaInfo",
    (
        Member("name", STR),
        Member(
            "meta-type",
            Enum("SchemaMetaType", ("builtin", "enum", "array", "object", "command", "event")),
        ),
        _optional("json-type", STR, "of a builtin"),
        _optional("element-type", STR, "of an array"),
        _optional("values", Array(STR), "of an enum"),
        _optional(
            "members",
            Array(
                Struct(
                    "SchemaInfoMember",
                    (
                        Member("name", STR),
                        _optional("type", STR, "of an object's member"),
                        _optional("default", ANY, "null where the member may be left out"),
                    ),
                )
            ),
            "of an enum or an object",
        ),
        _optional("arg-type", STR, "of a command or an event"),
        _optional("ret-type", STR, "of a command"),
        _optional("features", Array(STR), '"unstable": may change between versions'),
    ),
    "qapi/introspect.json of QEMU",
)

ERROR: Final = Struct(
    "ErrorReport",
    (
        Member(
            "kind",
            STR,
            "refused, failed, cancelled, unknown, peer, peer-lost, qemu, kernel, tracking-lost,"
            " configuration, denied, bug, error",
        ),
        Member("message", STR, "what happened"),
        Member("guest-state", STR, "where the guest is and whether it runs"),
        Member("advice", STR, "what to do"),
    ),
)

RAM: Final = Struct(
    "MigrationRAMInfo",
    (
        Member("transferred", SIZE, "bytes of page contents sent"),
        Member("remaining", SIZE, "left of this phase"),
        _optional("total", SIZE, "length of the guest's RAM"),
        _optional("duplicate", INT, "pages that held only zeros, sent as runs"),
        _optional("normal", INT, "pages sent with their contents"),
        _optional("normal-bytes", SIZE, "the same in bytes"),
        _optional("dirty-sync-count", INT, "rounds begun"),
        _optional("mbps", NUMBER, "megabits per second over the whole time"),
        _optional("pages-per-second", INT, "over the last second"),
        _optional("dirty-pages-rate", INT, "pages written per second, in the last round"),
        _optional("page-size", SIZE, "4096"),
    ),
)

RESIDENCY_COUNTS: Final = (
    Member("cold-bytes", SIZE, "swapped when the migration began"),
    Member("paged-in-bytes", SIZE, "read from swap by the migration"),
    Member("paged-out-bytes", SIZE, "given back to swap by it"),
    _optional("kept-bytes", SIZE, "read, and then in use by the guest: left in memory"),
    _optional("punched-bytes", SIZE, "given back by the guest meanwhile: holes at the end"),
    _optional("window-bytes", SIZE, "the page-in window"),
    _optional("swap-bandwidth", SIZE, "bytes per second that may be paged in; 0: no limit"),
    _optional("way", STR, "how it was learnt who is swapped; empty until known"),
)

MIGRATION_INFO: Final = Struct(
    "MigrationInfo",
    (
        _optional("status", STATUS, ""),
        _optional(
            "phase",
            STR,
            "look, arm, cold, resident, rounds, switchover, commit, done;"
            " of a destination look, receiving, switchover, commit, done",
        ),
        _optional("migration-id", STR, ""),
        _optional("guest", STR, "its name here, or the path of its QMP socket"),
        _optional("role", ROLE, ""),
        _optional("destination", STR, "host and port; empty on the destination"),
        _optional("total-time", INT, "milliseconds so far, or in all"),
        _optional("setup-time", INT, "milliseconds until the first page was sent"),
        _optional("downtime", NUMBER, "milliseconds without a running vCPU anywhere"),
        _optional(
            "expected-downtime",
            INT,
            "milliseconds, if it were stopped now; of a completed one, what was expected last",
        ),
        _optional(
            "switchover",
            Struct(
                "SwitchoverInfo",
                (
                    Member("last-round", NUMBER, "milliseconds for the last written pages"),
                    Member("device", NUMBER, "milliseconds for the device state"),
                    Member("commit", NUMBER, "milliseconds until the destination ran it"),
                    Member("written-bytes", SIZE, "sent while the guest was stopped"),
                    Member("swapped-bytes", SIZE, "of those, paged in for it"),
                ),
            ),
            "what the downtime consisted of",
        ),
        _optional(
            "cpu-throttle-percentage",
            INT,
            "taken from the vCPUs now; missing where nothing ever was",
        ),
        _optional("ram", RAM, ""),
        _optional("residency", Struct("MigrationResidency", RESIDENCY_COUNTS), ""),
        _optional(
            "progress",
            Struct(
                "PhaseProgress",
                (
                    Member("phase-done-bytes", SIZE, ""),
                    Member("phase-total-bytes", SIZE, "0 where a phase cannot be measured"),
                ),
            ),
            "of the phase; never runs backwards within one",
        ),
        _optional(
            "compression",
            Struct(
                "CompressionStats",
                (
                    Member("pages", INT, "that were sent packed"),
                    Member("compressed-size", SIZE, "what they took on the wire"),
                    Member("compression-rate", NUMBER, "how many times smaller; 0 where none were"),
                ),
            ),
            "what packing did",
        ),
        _optional(
            "drains",
            Struct("DrainInfo", (Member("count", INT, ""), Member("longest-ms", NUMBER, ""))),
            "waits for the guest's block I/O",
        ),
        _optional("verified", BOOL, "whether all memory was compared and is the same"),
        _optional("error-desc", STR, "the error's message, as in QAPI"),
        _optional("error", ERROR, "all of the error"),
    ),
    "Empty for a guest that has not been migrated.",
)

GUEST_INFO: Final = Struct(
    "GuestInfo",
    (
        Member("name", STR, ""),
        Member("qmp", STR, "path of its QMP socket"),
        Member("configured", BOOL, "by name, rather than found by guest-sockets"),
        Member("present", BOOL, "whether the socket is there"),
        Member("status", STATUS, "of its last migration"),
        _optional("migration-id", STR, "of its last migration"),
        _optional("role", ROLE, "in its last migration"),
    ),
)

DAEMON_STATUS: Final = Struct(
    "StatusInfo",
    (
        Member("status", Enum("DaemonState", ("running", "stopping")), ""),
        Member("running", BOOL, ""),
        Member("migrations", INT, "that run now"),
        Member("listen", STR, "where other agents connect"),
        Member("state-directory", STR, ""),
        Member("access", Enum("Access", ("full", "read-only")), "of this client"),
    ),
)

RESIDENCY_BYTES: Final = (
    Member("resident-bytes", SIZE, "in memory"),
    Member("swapped-bytes", SIZE, "in swap"),
    Member("hole-bytes", SIZE, "never allocated, or given back"),
)

RESIDENCY: Final = Struct(
    "ResidencyInfo",
    (
        Member("way", WAY, ""),
        Member("total", Struct("ResidencyBytes", RESIDENCY_BYTES), "of all blocks"),
        Member(
            "blocks",
            Array(
                Struct(
                    "BlockResidency",
                    (
                        Member("name", STR, "of the RAM block"),
                        *RESIDENCY_BYTES,
                        _optional("cell-bytes", SIZE, "what each number of the map stands for"),
                        _optional("resident-map", Array(INT), "resident pages, cell by cell"),
                        _optional("swapped-map", Array(INT), "swapped pages, cell by cell"),
                    ),
                )
            ),
            "",
        ),
    ),
)

SETTLEMENT: Final = Struct(
    "Settlement",
    (
        Member("migration-id", STR, ""),
        Member("settled", BOOL, "false while a person or the other host is needed"),
        Member("message", STR, ""),
        _optional("role", STR, ""),
        _optional("guest", STR, ""),
        _optional(
            "phase", STR, "as the journal has it; busy, unreadable or empty where it has none"
        ),
        _optional("found", STR, "how things stood"),
        _optional("plan", STR, "what follows from that; empty where there is nothing to do"),
        _optional("lost", BOOL, "the guest ended with the destination's QEMU"),
    ),
)

HISTORY_ENTRY: Final = Struct(
    "MigrationRecord",
    (
        Member("migration-id", STR, ""),
        Member("role", ROLE, ""),
        Member("guest", STR, ""),
        Member("status", STATUS, "how it ended"),
        Member("started", NUMBER, "seconds since 1970"),
        Member("ended", NUMBER, "seconds since 1970"),
        _optional("destination", STR, "of a source"),
        _optional("reason", STR, "why it did not complete"),
        _optional("error", ERROR, "the same in full, where only the journal is left to tell"),
        _optional("info", MIGRATION_INFO, "its last state; missing where only the journal is left"),
    ),
)

CHECK: Final = Struct(
    "DoctorCheck",
    (
        Member("section", STR, "kernel, host, tls, guest, destination"),
        Member("name", STR, ""),
        Member("verdict", Enum("DoctorVerdict", tuple(Verdict)), ""),
        Member("found", STR, "what was found"),
        Member("fix", STR, "what would make it better; empty where nothing is to be done"),
        _optional("guest", STR, "which one it is about"),
        _optional("free-bytes", SIZE, "of the host's memory, its swap, or a tmpfs"),
        _optional("resident-bytes", SIZE, "of the guest's RAM, what is in memory"),
        _optional("swapped-bytes", SIZE, "of the guest's RAM, what is in swap"),
    ),
)

ESTIMATE: Final = Struct(
    "MigrationEstimate",
    (
        Member("transfer-bytes", SIZE, "to send, all rounds; zero pages counted as data"),
        Member("page-in-bytes", SIZE, "to read from swap, and to give back on either host"),
        Member("total-time", INT, "milliseconds"),
        Member("rounds", INT, ""),
        Member("dirty-bytes-per-second", SIZE, "different pages written in a second"),
        Member("expected-downtime", INT, "milliseconds"),
        Member("converges", BOOL, "whether the downtime comes within downtime-limit"),
        Member("residency", Struct("ResidencyBytes", RESIDENCY_BYTES), ""),
        Member("sample-time", NUMBER, "seconds that writes were counted for"),
        Member("bandwidth", SIZE, "bytes per second that were reckoned with"),
        Member("bandwidth-assumed", BOOL, "not given, so assumed"),
        Member("swap-bandwidth", SIZE, "the same for swap"),
        Member("swap-bandwidth-assumed", BOOL, ""),
    ),
)
