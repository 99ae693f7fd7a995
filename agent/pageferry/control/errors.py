"""What a command that fails tells its caller.

The classes are QAPI's (QapiErrorClass). A program tells apart by class only what it can act on by
itself; the rest is GenericError, and ``report`` says more: the map of PageferryError.report().
"""

from __future__ import annotations

from typing import Any

from pageferry.model.errors import PageferryError, UnknownGuestError

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_FOUND = "DeviceNotFound"
"""QAPI's class for "no such object"; here: no such guest or migration."""


class CommandError(Exception):
    """A command was refused or failed. ``report``: as of PageferryError.report(), or empty."""

    def __init__(
        self, desc: str, error_class: str = GENERIC_ERROR, report: dict[str, Any] | None = None
    ) -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class
        self.report = report or {}

    @classmethod
    def from_pageferry(cls, error: PageferryError) -> CommandError:
        """The same error for the other end of a control socket."""
        desc = f"{error.message}; {error.advice}" if error.advice else error.message
        is_absent = isinstance(error, UnknownGuestError)
        error_class = DEVICE_NOT_FOUND if is_absent else GENERIC_ERROR
        return cls(desc, error_class, dict(error.report()))

    @classmethod
    def denied(cls, message: str, advice: str) -> CommandError:
        """The client may not do this; the command had no effect."""
        report = {"kind": "denied", "message": message, "guest-state": "", "advice": advice}
        return cls(f"{message}; {advice}", report=report)

    def as_reply(self) -> dict[str, Any]:
        """The value of ``error`` in QMP's answer."""
        body: dict[str, Any] = {"class": self.error_class, "desc": self.desc}
        if self.report:
            body["report"] = self.report
        return body
