"""X.509 certificates of hosts: their files, what they say, making them, how long they last."""
