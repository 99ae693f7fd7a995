"""``python -m pageferry.testing.lab.guest`` builds the freestanding guest and prints its path."""

from __future__ import annotations

from pageferry.testing.lab.guest import freestanding_image

if __name__ == "__main__":
    print(freestanding_image())
