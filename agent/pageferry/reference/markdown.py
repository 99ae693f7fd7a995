"""docs/reference.md: configuration, parameters, commands, events, metrics, exit statuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric

from pageferry.cli.exit_codes import MEANINGS
from pageferry.cli.main import VERBS, module_of
from pageferry.control import declarations, schema
from pageferry.control.registry import Declaration
from pageferry.control.schema import Array, Builtin, Enum, Member, Struct
from pageferry.control.types import PARAMETERS
from pageferry.daemon.config_keys import KEYS, TABLES
from pageferry.daemon.metrics import Metrics
from pageferry.daemon.migrations import MigrationLog
from pageferry.model.parameters import CHANGEABLE, MigrationParameters

HEAD = """\
# Reference

Written from the code by `make reference`; a test fails when it is not current. Manual pages with
the same contents are in `deploy/man/`.
"""


def reference() -> str:
    """The whole file."""
    parts = [HEAD, *_configuration(), *_parameters(), *_verbs(), *_commands(), *_events()]
    return "\n".join([*parts, *_metrics(), *_exit_statuses()])


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _configuration() -> Iterator[str]:
    yield "## Configuration\n"
    yield (
        "`/etc/pageferry/pageferryd.toml`, or the file given with `--config`. TOML, read strictly:"
        " an unknown\nkey is an error that names its line. `pageferryd --check` checks the file."
        " SIGHUP reads it again; what\nneeds a restart says so below and in the log.\n"
    )
    for table, meaning in TABLES.items():
        yield f"### `[{table}]`\n\n{meaning}\n"
        if table == "defaults":
            yield "The keys are the [migration parameters](#migration-parameters).\n"
            continue
        rows = [
            (
                _code(key.key),
                key.kind,
                _code(key.default) if '", or' not in key.default else key.default,
                key.meaning + ("; needs a restart" if key.needs_restart else ""),
            )
            for key in KEYS
            if key.table == table
        ]
        yield _table(("key", "value", "default", "meaning"), rows)


def _parameters() -> Iterator[str]:
    yield "## Migration parameters\n"
    yield (
        "In `[defaults]`, as `parameters` of `migrate`, with `migrate-set-parameters` and"
        " `pageferry set`.\n"
    )
    defaults = MigrationParameters().to_dict()
    rows = [
        (
            _code(member.name),
            type_text(member.type),
            _code(toml(defaults.get(member.name))),
            "yes" if member.name in CHANGEABLE else "no",
            member.doc,
        )
        for member in PARAMETERS
    ]
    yield _table(("parameter", "type", "default", "while it runs", "meaning"), rows)


def toml(value: Any) -> str:
    """A value as TOML writes it; empty for none."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_text(kind: schema.Type) -> str:
    """A type in a cell of a table."""
    if isinstance(kind, Builtin):
        return kind.value
    if isinstance(kind, Array):
        return f"array of {type_text(kind.element)}"
    if isinstance(kind, Enum):
        return "one of " + ", ".join(_code(value) for value in kind.values)
    return f"[{kind.name}](#{kind.name.lower()})"


def _verbs() -> Iterator[str]:
    yield "## Command line\n"
    yield "`pageferry VERB --help` and pageferry(1) have the options of each.\n"
    yield _table(("verb", ""), [(_code(verb), module_of(verb).SUMMARY) for verb in VERBS])


def all_declarations() -> list[Declaration]:
    """Every command, by its name."""
    found = [each for each in vars(declarations).values() if isinstance(each, Declaration)]
    return sorted(found, key=lambda each: each.name)


def _commands() -> Iterator[str]:
    yield "## Commands of the control socket\n"
    yield (
        "The socket speaks QMP. Types are QAPI's, sizes in bytes. Members of answers that are not"
        " always there\nare marked *optional*; a newer daemon may send more. query-qmp-schema tells"
        " the same to programs.\n"
    )
    types: dict[str, Struct] = {}
    for command in all_declarations():
        yield f"### `{command.name}`\n\n{command.doc}\n"
        if "unstable" in command.features:
            yield "Unstable: it may change between versions.\n"
        if command.arguments:
            yield _members(("argument", "type", "meaning"), command.arguments, types)
        if command.returns is schema.EMPTY:
            yield "Answers with an empty object.\n"
        else:
            _collect(command.returns, types)
            yield f"Answers with {type_text(command.returns)}.\n"
    yield "### Types\n"
    for name in sorted(types):
        kind = types[name]
        yield f'#### <a name="{name.lower()}"></a>{name}\n' + (
            f"\n{kind.doc}\n" if kind.doc else ""
        )
        yield _members(("member", "type", "meaning"), kind.members, {})


def _members(heading: Sequence[str], members: Iterable[Member], types: dict[str, Struct]) -> str:
    rows = []
    for member in members:
        _collect(member.type, types)
        text = f"*optional* {member.doc}".strip() if member.optional else member.doc
        rows.append((_code(member.name), type_text(member.type), text))
    return _table(heading, rows)


def _collect(kind: schema.Type, types: dict[str, Struct]) -> None:
    if isinstance(kind, Array):
        _collect(kind.element, types)
    elif isinstance(kind, Struct) and kind.name not in types:
        types[kind.name] = kind
        for member in kind.members:
            _collect(member.type, types)


def _events() -> Iterator[str]:
    yield "## Events\n"
    for event in declarations.EVENTS:
        yield f"### `{event.name}`\n\n{event.doc}\n"
        yield _members(("member", "type", "meaning"), event.members, {})


def metric_families() -> list[Metric]:
    """Every family that a scrape may have, by its name."""
    found = Metrics(MigrationLog(), lambda: 0).registry.collect()
    return sorted(found, key=lambda family: family.name)


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    yield (
        "At `/metrics` of the address in `[metrics]`. A dashboard for Grafana is in"
        " `deploy/grafana/`. Gauges of\nmigrations are there while they run, with the labels"
        " `guest` and `role`.\n"
    )
    rows = [
        (
            _code(family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")),
            family.type,
            family.documentation,
        )
        for family in metric_families()
        if family.name.startswith("pageferry_")
    ]
    yield _table(("metric", "kind", "meaning"), rows)
    yield "Beside them `process_*` of the daemon, as every exporter has them.\n"


def _exit_statuses() -> Iterator[str]:
    yield "## Exit statuses\n"
    yield _table(("status", "meaning"), [(str(int(code)), text) for code, text in MEANINGS.items()])
    yield (
        "With `--json` an error is an object as well, on standard output, while standard error\n"
        "has the words for people: `exit-status`, and `error` with `kind`, `message`,\n"
        "`guest-state` and `advice`. With `migrate` and `watch` both are in the last line, whose\n"
        "`event` is `finished`.\n"
    )
