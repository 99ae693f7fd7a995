"""The protocol between two agents, sans IO: it knows no socket, no clock and no task.

``messages`` are what is said, ``frames`` cuts a stream of bytes into them, ``session`` knows which
message may come when, ``ledger`` counts what has arrived in a round. ``packing`` and ``fields``
judge the bytes and values, ``limits`` has the bounds.
"""
