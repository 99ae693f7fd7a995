"""Who may do what on the control socket.

Whoever can connect may do everything, as the socket's mode says; but members of the read-only group
may only query, and they can connect because the socket belongs to that group.
"""

from __future__ import annotations

import os

from pageferry.control.registry import Peer
from pageferry.control.server import Access


def access_for(read_only_gid: int | None) -> Access:
    """Whether a peer may do everything. Root and the daemon's own user always may."""
    own_uid = os.geteuid()

    def may_change(peer: Peer) -> bool:
        if read_only_gid is None or peer.uid in (0, own_uid):
            return True
        return not peer.is_in_group(read_only_gid)

    return may_change
