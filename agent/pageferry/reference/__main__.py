"""Write docs/reference.md and deploy/man/ anew."""

from __future__ import annotations

import sys
from pathlib import Path

from pageferry.reference.markdown import reference
from pageferry.reference.roff import pages


def main(root: Path) -> None:
    """Write them under *root*, the top of the repository."""
    (root / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
    man = root / "deploy" / "man"
    man.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (man / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
