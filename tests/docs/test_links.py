"""Every relative link and anchor leads somewhere, and every page can be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page, pages, read_page

ELSEWHERE = ("https://", "http://", "mailto:")


def broken_links(page: Page) -> list[str]:
    """Links of the page that lead nowhere."""
    return [link for link in page.links() if not leads_somewhere(page, link)]


def leads_somewhere(page: Page, link: str, root: Path = ROOT) -> bool:
    """Whether a link of the page has a target within *root*, or is not ours to check."""
    if link.startswith(ELSEWHERE):
        return True
    path, _, anchor = link.partition("#")
    target = (page.path.parent / path).resolve() if path else page.path
    if not target.exists() or not target.is_relative_to(root):
        return False
    if not anchor:
        return True
    return target.suffix == ".md" and anchor in read_page(target).anchors


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    assert broken_links(page) == []


def test_every_page_is_linked_from_the_readme_or_a_page_that_is() -> None:
    by_path = {page.path: page for page in pages()}
    reached = {ROOT / "README.md"}
    waiting = [ROOT / "README.md"]
    while waiting:
        page = by_path[waiting.pop()]
        for link in page.links():
            target = (page.path.parent / link.partition("#")[0]).resolve()
            if target in by_path and target not in reached:
                reached.add(target)
                waiting.append(target)
    assert {page.name for page in pages() if page.path not in reached} == set()


def test_every_picture_is_shown() -> None:
    shown = {(page.path.parent / link).resolve() for page in pages() for link in page.links()}
    pictures = {path for path in (ROOT / "docs" / "img").iterdir() if path.is_file()}
    assert pictures - shown == set()


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Some words, `here`\n\n## Again\n\n## Again\n")
    links = ("there.md", "there.md#some-words-here", "there.md#again-1", "there.md#no", "gone.md")
    (tmp_path / "page.md").write_text("# Head\n" + " ".join(f"[a]({link})" for link in links))
    page = read_page(tmp_path / "page.md")
    assert [link for link in page.links() if not leads_somewhere(page, link, tmp_path)] == [
        "there.md#no",
        "gone.md",
    ]
