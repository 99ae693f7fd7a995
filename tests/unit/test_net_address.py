"""Addresses as operators write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.model.errors import RefusedError
from pageferry.net.address import DEFAULT_PORT, Address, is_loopback, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("host", "host", DEFAULT_PORT),
        ("host.example.org:1", "host.example.org", 1),
        ("host.example.org.", "host.example.org.", DEFAULT_PORT),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("[2001:db8::1]:7", "2001:db8::1", 7),
        ("[2001:db8::1]", "2001:db8::1", DEFAULT_PORT),
        ("2001:db8::1", "2001:db8::1", DEFAULT_PORT),
        ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
        ("a-b_c", "a-b_c", DEFAULT_PORT),
    ],
)
def test_good(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert parse_address(str(parse_address(text))) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "host:", "host:0", "host:65536", "host:-1", "host: 1", "host:1_0", "host:x"),
        *(
            "[::1",
            "::1]",
            "[]:1",
            "[host]:1",
            "[::1]x",
            "[::1]:",
            "a b",
            "host/",
            "-host",
            "a..",
            "1:2:3",
        ),
        *("host:١", "ho\x00st", "host\n", "x" * 254),
    ],
)
def test_bad(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_address(text)
    assert "HOST" in caught.value.advice


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except RefusedError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert Address(host).is_loopback


@pytest.mark.parametrize("host", ["localhost.example.org", "10.0.0.1", "::2", "0.0.0.0", "::", "x"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_default_port_is_none_of_qemus() -> None:
    assert not 49152 <= DEFAULT_PORT <= 49215
