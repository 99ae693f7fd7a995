"""What runs in the VM that the package is installed in, by name; see ``test_installed.py``."""
