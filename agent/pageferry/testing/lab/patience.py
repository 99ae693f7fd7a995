"""How much longer than usual the lab waits, on a machine that is slow by its nature.

``PAGEFERRY_PATIENCE=4``, in a VM under TCG, makes each of the lab's deadlines for starting,
settling and answering four times as long. pageferry's own deadlines stay as they are.
"""

from __future__ import annotations

import os

PATIENCE_VARIABLE = "PAGEFERRY_PATIENCE"


def patient(usual_s: float) -> float:
    """The deadline to use here, in seconds, where `usual_s` does on an ordinary machine."""
    return usual_s * float(os.environ.get(PATIENCE_VARIABLE) or 1)
