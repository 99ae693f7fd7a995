"""Sockets: addresses, the control stream, the data connections that threads drive."""
