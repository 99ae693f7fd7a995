"""Which message may come when on the control connection: a state machine that knows no socket.

Theory of operation
===================

Both sides feed all that they say (``send``) and all that they hear (``receive``) to an Exchange of
their own. It knows nothing else, and either accepts a message or raises and is as it was before:
LocalProtocolError for what this side must not say (our bug), RemoteProtocolError for what the peer
must not have said (its fault; the connection is of no use any more).

There is no single current state, since both sides speak at any time: device state flows both ways
while the final round is acknowledged, and an Abort can meet anything. What counts is what has been
said. Two kinds of rules follow from that:

- A message is *enabled* by what was said before, by either side. Who hears it can check that in
  full: the peer cannot have known what has not been said.
- A message is *ruled out* by something said before. Of that, the peer may not have heard yet what
  we said last; the two messages then cross. So what we hear is checked against what the *peer*
  said itself, and only what we say is checked against all. A message that crossed with an Abort
  is accepted, and means nothing any more.

The table. S is the source, D the destination; S~ and D~ are "said by S, D". *Enabled by* needs all
of those named. Every message but the first needs a connection that was opened::

    message        says  enabled by                      ruled out by               how often
    -----------------------------------------------------------------------------------------
    Hello          S     nothing said                    anything                   once
    HelloReply     D     Hello                           D~Refuse                   once
    Describe       S     HelloReply                                                 once
    Ready          D     Describe                        D~Refuse                   once
    Refuse         D     Hello or Query                  D~Ready, D~QueryReply      once, last
    Started        D     Ready                                                      once
    RoundEnd       S     Started, round before           open Verify, S~Commit      number + 1
                         acknowledged;
                         final: DeviceReady              not final: a final one
    RoundAck       D     RoundEnd of that number                                    once each
    PrepareDevice  S     Started                                                    once
    DeviceReady    D     PrepareDevice                                              once
    DeviceData     both  DeviceReady                     own DeviceEnd              any
    DeviceEnd      both  DeviceReady                                                once each
    DeviceLoaded   D     RoundAck of a final round                                  once
    Verify         S     RoundAck of a final round,      open round, open Verify    any
                         all rounds acknowledged
    Digest         D     Verify                                                     once each
    Commit         S     RoundAck of a final round,      open round, open Verify,   once
                         S~DeviceEnd, DeviceLoaded       any Abort
    Running        D     Commit                          D~Abort                    once, last
    CommitFailed   D     Commit                          D~Abort                    once, last
    Abort          both  Hello or Query                  Commit                     once each
    Aborted        D     any Abort                                                  once, last
    Ping           both  HelloReply or QueryReply                                   number rises
    Pong           both  the other's Ping                                           once each
    Query          S     nothing said, or answered       Hello                      any
    QueryReply     D     Query                                                      once each

- *Last*: D says nothing after it, and S nothing after having heard it.
- After its own Abort a side says only DeviceData, DeviceEnd, Ping and Pong (pumps run on until they
  are stopped), and D its Aborted.
- QEMU's stream begins right after DeviceReady, with setup sections, while the final round is still
  under way. S holds it up (``pause-before-switchover``) until that round is acknowledged: device
  state must find RAM complete.
- More final rounds may follow the first until Commit, for what QEMU wrote while it saved.

Ownership
=========

D may let the guest run only after Commit. So until S has said it, S owns the guest whatever
happens, also when the connection breaks. From then on S owns it again only after one of D's
promises never to start it: Aborted (D's Abort crossed with Commit) or CommitFailed.
``source_may_resume`` says so, ``outcome_unknown`` says that neither promise nor Running has come.
D says Aborted and CommitFailed only when they are durably true. On a recovery connection S asks
with Query what became of the migration, and may demand with Abort that it ends; D then says Aborted
once that is true, or closes the connection. This Exchange
cannot know whether Commit was said before on another connection, and takes it that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pageferry.model.errors import LocalProtocolError, PageferryError, RemoteProtocolError
from pageferry.wire import messages as m
from pageferry.wire.limits import FIRST_ROUND, OLDEST_VERSION


class Role(Enum):
    """The two sides of one migration."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def other(self) -> Role:
        return Role.DESTINATION if self is Role.SOURCE else Role.SOURCE


_S, _D = Role.SOURCE, Role.DESTINATION
Type = type[m.Message]

LAST_TYPES: Final[frozenset[Type]] = frozenset({m.Refuse, m.Running, m.CommitFailed, m.Aborted})
"""After one of these the exchange is over."""

PUMPED_TYPES: Final[frozenset[Type]] = frozenset({m.DeviceData, m.DeviceEnd, m.Ping, m.Pong})
"""Said by tasks that run on beside the choreography; they may still be after an Abort."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table, as far as it is made of what was said or not."""

    speakers: frozenset[Role]
    after: tuple[Type, ...] = ()
    not_after_own: tuple[Type, ...] = ()
    not_after_any: tuple[Type, ...] = ()
    repeats: bool = False


def _by(*speakers: Role) -> frozenset[Role]:
    return frozenset(speakers)


RULES: Final[Mapping[Type, Rule]] = {
    m.Hello: Rule(_by(_S), not_after_own=(m.Query,)),
    m.HelloReply: Rule(_by(_D), after=(m.Hello,)),
    m.Describe: Rule(_by(_S), after=(m.HelloReply,)),
    m.Ready: Rule(_by(_D), after=(m.Describe,)),
    m.Refuse: Rule(_by(_D), not_after_own=(m.Ready, m.QueryReply)),
    m.Started: Rule(_by(_D), after=(m.Ready,)),
    m.RoundEnd: Rule(_by(_S), after=(m.Started,), not_after_own=(m.Commit,), repeats=True),
    m.RoundAck: Rule(_by(_D), after=(m.RoundEnd,), repeats=True),
    m.PrepareDevice: Rule(_by(_S), after=(m.Started,)),
    m.DeviceReady: Rule(_by(_D), after=(m.PrepareDevice,)),
    m.DeviceData: Rule(_by(_S, _D), (m.DeviceReady,), not_after_own=(m.DeviceEnd,), repeats=True),
    m.DeviceEnd: Rule(_by(_S, _D), after=(m.DeviceReady,)),
    m.DeviceLoaded: Rule(_by(_D), after=(m.DeviceReady,)),
    m.Verify: Rule(_by(_S), after=(m.Started,), not_after_own=(m.Commit,), repeats=True),
    m.Digest: Rule(_by(_D), after=(m.Verify,), repeats=True),
    m.Commit: Rule(_by(_S), after=(m.DeviceLoaded,), not_after_any=(m.Abort,)),
    m.Running: Rule(_by(_D), after=(m.Commit,)),
    m.CommitFailed: Rule(_by(_D), after=(m.Commit,)),
    m.Abort: Rule(_by(_S, _D), not_after_any=(m.Commit,)),
    m.Aborted: Rule(_by(_D), after=(m.Abort,)),
    m.Ping: Rule(_by(_S, _D), repeats=True),
    m.Pong: Rule(_by(_S, _D), after=(m.Ping,), repeats=True),
    m.Query: Rule(_by(_S), not_after_own=(m.Hello,), repeats=True),
    m.QueryReply: Rule(_by(_D), after=(m.Query,), repeats=True),
}


class Exchange:
    """The control connection as one side sees it. See the module's text for the rules."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.version = OLDEST_VERSION
        """What both sides speak, as HelloReply said; the oldest that can be before that."""
        self._said: dict[Role, set[Type]] = {_S: set(), _D: set()}
        self._hello: m.Hello | None = None
        self._describe: m.Describe | None = None
        self._channels = 0
        self._round = FIRST_ROUND - 1
        self._round_is_open = False
        self._is_final = False
        self._has_placed_final = False
        self._verify_is_open = False
        self._query_is_open = False
        self._last_ping = {_S: -1, _D: -1}
        self._last_pong = {_S: -1, _D: -1}

    def send(self, message: m.Message) -> None:
        """This side is about to say *message*. Raises LocalProtocolError if it must not.

        To be called before the first byte is sent: whether a message that was begun has arrived
        cannot be known, so from here on it counts as said.
        """
        self._accept(self.role, message, LocalProtocolError, "this side must not send")

    def receive(self, message: m.Message) -> None:
        """The peer has said *message*. Raises RemoteProtocolError if it must not have."""
        self._accept(self.role.other, message, RemoteProtocolError, "the peer must not send")

    def may_send(self, message: m.Message) -> bool:
        """Whether ``send`` would accept *message* now."""
        return self._complaint(self.role, message) is None

    @property
    def is_over(self) -> bool:
        """Whether D has said its last message."""
        return bool(self._said[_D] & LAST_TYPES)

    @property
    def channels(self) -> int:
        """Data connections of this migration; 0 before Ready."""
        return self._channels

    @property
    def source_may_resume(self) -> bool:
        """Whether, by what was said on this connection alone, D will never start the guest."""
        return not self._commit_may_have_been_said or bool(
            self._said[_D] & {m.Aborted, m.CommitFailed}
        )

    @property
    def outcome_unknown(self) -> bool:
        """Whether Commit was said, and D has neither started the guest nor promised not to."""
        return self._commit_may_have_been_said and not self._said[_D] & (LAST_TYPES - {m.Refuse})

    @property
    def _commit_may_have_been_said(self) -> bool:
        """Query comes from a source that may have said Commit on an earlier connection."""
        return bool(self._said[_S] & {m.Commit, m.Query})

    def _accept(
        self, speaker: Role, message: m.Message, error: type[PageferryError], fault: str
    ) -> None:
        complaint = self._complaint(speaker, message)
        if complaint is not None:
            raise error(f"{fault} {message.name} here: {complaint}")
        self._record(speaker, message)

    def _complaint(self, speaker: Role, message: m.Message) -> str | None:
        """What speaks against *message*, or None."""
        kind = type(message)
        rule = RULES.get(kind)
        if rule is None or speaker not in rule.speakers:
            return f"it is not for the {speaker.value}, or not for this connection"
        complaint = self._complaint_by_rule(speaker, kind, rule)
        if complaint is None and kind in _GUARDS:
            complaint = _GUARDS[kind](self, speaker, message)
        return complaint

    def _complaint_by_rule(self, speaker: Role, kind: Type, rule: Rule) -> str | None:
        own = self._said[speaker]
        # What the other one said last may not have reached the peer; it certainly reached us.
        known = own | self._said[speaker.other] if speaker is self.role else own
        everything = own | self._said[speaker.other]
        if kind not in (m.Hello, m.Query) and not self._said[_S] & {m.Hello, m.Query}:
            return "the connection begins with Hello or Query"
        if known & LAST_TYPES:
            return f"the exchange ended with {_names(known & LAST_TYPES)}"
        if m.Abort in own and kind not in PUMPED_TYPES | {m.Aborted}:
            return "it has already said abort"
        if kind in own and not rule.repeats:
            return "it was said before"
        missing = [needed for needed in rule.after if needed not in everything]
        if missing:
            return f"it needs {_names(missing)} first"
        against = own.intersection(rule.not_after_own) | known.intersection(rule.not_after_any)
        return f"it cannot follow {_names(against)}" if against else None

    def _record(self, speaker: Role, message: m.Message) -> None:
        self._said[speaker].add(type(message))
        match message:
            case m.Hello():
                self._hello = message
            case m.HelloReply():
                self.version = message.version
            case m.Describe():
                self._describe = message
            case m.Ready():
                self._channels = message.channels
            case m.RoundEnd():
                self._round, self._round_is_open = message.round, True
                self._is_final = message.final
            case m.RoundAck():
                self._round_is_open = False
                self._has_placed_final = self._is_final
            case m.Verify() | m.Digest():
                self._verify_is_open = isinstance(message, m.Verify)
            case m.Query() | m.QueryReply():
                self._query_is_open = isinstance(message, m.Query)
            case m.Ping():
                self._last_ping[speaker] = message.sequence
            case m.Pong():
                self._last_pong[speaker] = message.sequence
            case _:
                pass

    # Guards: the rows of the table that depend on more than what was said.

    def _guard_hello_reply(self, _speaker: Role, message: m.HelloReply) -> str | None:
        hello = self._hello
        assert hello is not None
        if not hello.min_version <= message.version <= hello.max_version:
            return f"version {message.version} was not offered"
        return None

    def _guard_ready(self, _speaker: Role, message: m.Ready) -> str | None:
        assert self._describe is not None
        if message.channels > self._describe.channels:
            return f"{message.channels} channels, {self._describe.channels} were offered"
        return None

    def _guard_round_end(self, _speaker: Role, message: m.RoundEnd) -> str | None:
        if self._round_is_open or self._verify_is_open:
            return "the round or verification before is not acknowledged"
        if message.round != self._round + 1:
            return f"round {message.round} after round {self._round}"
        if len(message.frames_per_channel) != self._channels:
            return f"counts of {len(message.frames_per_channel)} channels of {self._channels}"
        if message.final and m.DeviceReady not in self._said[_D]:
            return "a final round needs device-ready first"
        if self._is_final and not message.final:
            return "the final round is over, the guest is stopped"
        return None

    def _guard_round_ack(self, _speaker: Role, message: m.RoundAck) -> str | None:
        if not self._round_is_open or message.round != self._round:
            return f"round {message.round} is not waiting for it"
        return None

    def _guard_ram_complete(self, _speaker: Role, _message: m.Message) -> str | None:
        if not self._has_placed_final or self._round_is_open or self._verify_is_open:
            return "a final round must have been acknowledged, and nothing be open after it"
        return None

    def _guard_device_loaded(self, _speaker: Role, _message: m.DeviceLoaded) -> str | None:
        return None if self._has_placed_final else "RAM is not complete"

    def _guard_digest(self, _speaker: Role, message: m.Digest) -> str | None:
        assert self._describe is not None
        if not self._verify_is_open:
            return "nobody asked"
        if set(message.digests) != {name for name, _ in self._describe.blocks}:
            return "it is not of the RAM blocks that were described"
        return None

    def _guard_commit(self, speaker: Role, message: m.Commit) -> str | None:
        if m.DeviceEnd not in self._said[_S]:
            return "the device state is not complete"
        return self._guard_ram_complete(speaker, message)

    def _guard_ping(self, speaker: Role, message: m.Ping) -> str | None:
        if not self._said[_D] & {m.HelloReply, m.QueryReply}:
            return "the other side has not answered yet"
        if message.sequence <= self._last_ping[speaker]:
            return f"sequence {message.sequence} after {self._last_ping[speaker]}"
        return None

    def _guard_pong(self, speaker: Role, message: m.Pong) -> str | None:
        if not self._last_pong[speaker] < message.sequence <= self._last_ping[speaker.other]:
            return f"no ping of sequence {message.sequence} waits for it"
        return None

    def _guard_query(self, _speaker: Role, _message: m.Query) -> str | None:
        return "the query before is not answered" if self._query_is_open else None

    def _guard_query_reply(self, _speaker: Role, _message: m.QueryReply) -> str | None:
        return None if self._query_is_open else "nobody asked"


def _names(kinds: set[Type] | list[Type]) -> str:
    return ", ".join(sorted(kind.name for kind in kinds))


_GUARDS: Final[dict[Type, Callable[..., str | None]]] = {
    m.HelloReply: Exchange._guard_hello_reply,
    m.Ready: Exchange._guard_ready,
    m.RoundEnd: Exchange._guard_round_end,
    m.RoundAck: Exchange._guard_round_ack,
    m.DeviceLoaded: Exchange._guard_device_loaded,
    m.Verify: Exchange._guard_ram_complete,
    m.Digest: Exchange._guard_digest,
    m.Commit: Exchange._guard_commit,
    m.Ping: Exchange._guard_ping,
    m.Pong: Exchange._guard_pong,
    m.Query: Exchange._guard_query,
    m.QueryReply: Exchange._guard_query_reply,
}
