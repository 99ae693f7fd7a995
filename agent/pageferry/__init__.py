"""pageferry: live migration of QEMU guests that leaves swapped pages swapped."""

__version__ = "0.1.0"
