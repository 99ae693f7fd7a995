"""The private apt configuration: which of the system's sources it takes over, and how."""

from __future__ import annotations

from pageferry.testing.lab.packages import sources_with_backports

DEB822 = """\
# main archive
Types: deb deb-src
URIs: http://archive.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://third-party.invalid/
Suites: nodistro
Components: main
"""


def test_deb822_archive_gains_backports_and_keeps_its_key() -> None:
    main, security = sources_with_backports(DEB822, "bookworm", deb822=True).strip().split("\n\n")
    assert "Suites: bookworm bookworm-updates bookworm-backports" in main
    assert "Types: deb\n" in main
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in main
    assert "Suites: bookworm-security\n" in security


def test_deb822_third_parties_are_left_out() -> None:
    assert "third-party" not in sources_with_backports(DEB822, "bookworm", deb822=True)


def test_deb822_disabled_stanza_is_left_out() -> None:
    text = "Enabled: no\n" + DEB822.split("\n\n", maxsplit=1)[0]
    assert sources_with_backports(text, "bookworm", deb822=True) == ""


def test_one_line_source_gains_backports_with_its_options() -> None:
    text = (
        "# comment\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://archive.invalid/debian bookworm main contrib\n"
        "deb-src http://archive.invalid/debian bookworm main\n"
        "deb http://archive.invalid/debian bookworm-updates main\n"
        "deb http://third-party.invalid/ stable main\n"
    )
    archive = "[arch=amd64 signed-by=/k.gpg] http://archive.invalid/debian"
    assert sources_with_backports(text, "bookworm", deb822=False).splitlines() == [
        f"deb {archive} bookworm main contrib",
        f"deb {archive} bookworm-backports main contrib",
        "deb http://archive.invalid/debian bookworm-updates main",
    ]
