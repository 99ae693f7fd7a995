"""pageferryd: configuration, supervision of the worker processes, listener, control commands."""
