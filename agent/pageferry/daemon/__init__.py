"""pageferryd: configuration, listener, control socket and the workers it supervises."""
