"""Errors, typed by what they mean for the guest.

Every error that reaches an operator carries three things: what happened, what state the guest is
in, and what to do. ``str()`` is the first; the others are attributes, so that a program can use
them too.
"""

from __future__ import annotations


class PageferryError(Exception):
    """Base of all errors that pageferry raises on purpose.

    ``guest_state`` says where the guest is and whether it runs; ``advice`` says what to do. Raised
    without any, an error has its class's ``usual_advice``, so that nobody is left without.
    """

    kind = "error"
    usual_advice = "see the log of pageferryd; if it does not explain it, report it with that log"

    def __init__(self, message: str, *, guest_state: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.guest_state = guest_state
        self.advice = advice or self.usual_advice

    def report(self) -> dict[str, str]:
        """The error as a map: ``kind``, ``message``, ``guest-state`` and ``advice``."""
        return {
            "kind": self.kind,
            "message": self.message,
            "guest-state": self.guest_state,
            "advice": self.advice,
        }


class RefusedError(PageferryError):
    """The migration was refused before anything was touched: all is as it was before."""

    kind = "refused"

    def __init__(self, message: str, *, guest_state: str = "untouched", advice: str) -> None:
        super().__init__(message, guest_state=guest_state, advice=advice)


class UnknownGuestError(RefusedError):
    """This host knows no such guest."""


class MigrationFailedError(PageferryError):
    """The migration failed before the commit; the source owns the guest and has resumed it."""

    kind = "failed"
    usual_advice = "see the logs of pageferryd on both hosts, then try again"


class MigrationCancelledError(PageferryError):
    """The migration was cancelled before the commit; the source has the guest and resumed it."""

    kind = "cancelled"
    usual_advice = ""


class OutcomeUnknownError(PageferryError):
    """The source has said *commit* and does not know whether the destination runs the guest.

    The source keeps the guest paused. Only ``pageferry recover`` or an operator may settle it.
    """

    kind = "unknown"
    usual_advice = "start the guest nowhere by hand; `pageferry recover` shows what is known"


class LocalProtocolError(PageferryError):
    """This side tried to say something that the protocol does not allow here: a bug of ours."""

    kind = "bug"
    usual_advice = "report this as a bug, with the logs of both agents"


class RemoteProtocolError(PageferryError):
    """The peer broke the protocol. The connection cannot be used any more."""

    kind = "peer"
    usual_advice = (
        "check that both hosts run compatible versions of pageferry; if they do, report this with"
        " the logs of both"
    )


class PeerLostError(PageferryError):
    """The connection to the other agent ended or went silent."""

    kind = "peer-lost"
    usual_advice = "check the network, and the log of pageferryd on the other host"


class QemuError(PageferryError):
    """QEMU refused a command, did not answer in time, or is gone.

    ``error_class`` is QAPI's for a refusal, empty otherwise.
    """

    kind = "qemu"
    usual_advice = "look at the log of that QEMU"
    error_class = ""


class TrackingLostError(PageferryError):
    """Write tracking ended under us; what was copied so far can no longer be trusted."""

    kind = "tracking-lost"
    usual_advice = "start the migration again"


class KernelFeatureError(PageferryError):
    """The kernel, or what we may do with it, lacks something that is needed."""

    kind = "kernel"
    usual_advice = "see `pageferry doctor`"
