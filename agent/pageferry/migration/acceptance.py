"""Whether this destination can take the guest that the source describes. Pure."""

from __future__ import annotations

from pageferry.model.errors import RefusedError
from pageferry.qemu.look import GuestView
from pageferry.wire.messages import Describe


def refuse_mismatch(offered: Describe, view: GuestView) -> None:
    """Raise RefusedError when machine or RAM blocks differ, naming what does and what to do."""
    if offered.machine != view.machine_type:
        raise RefusedError(
            f"the destination's machine is {view.machine_type}, the guest's {offered.machine}",
            advice=f"start the destination QEMU with -machine {offered.machine}",
        )
    ours = {block.name: block.length_bytes for block in view.blocks}
    theirs = dict(offered.blocks)
    for name, length_bytes in theirs.items():
        if name not in ours:
            raise RefusedError(
                f"the destination has no RAM block {name}",
                advice="start the destination QEMU with the same memory backends, ids included",
            )
        if ours[name] != length_bytes:
            raise RefusedError(
                f"RAM block {name} has {ours[name]} bytes on the destination, {length_bytes} on the"
                " source",
                advice="start the destination QEMU with the same memory sizes",
            )
    for name in ours:
        if name not in theirs:
            raise RefusedError(
                f"the destination has a RAM block {name} that the source does not have",
                advice="start the destination QEMU with the same memory backends, ids included",
            )
