"""Whose handshake it is that comes through proxies, and whose word is not taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.config.proxies import ForwardedError, Proxies, parse

PROXY = "10.0.0.1"
OUTER = "10.0.0.2"
CLIENT = "192.0.2.7"
TRUSTED = parse("10.0.0.0/8, fd00::/8")


def client(*headers: str, address: str = PROXY, trusted: Proxies = TRUSTED) -> str:
    """Return whose handshake it is; headers are written as on the wire."""
    split = (header.partition(":") for header in headers)
    pairs = [(name.encode("latin-1"), value.strip().encode("latin-1")) for name, _, value in split]
    return trusted.client(address, pairs)


FORWARDED = {
    "X-Forwarded-For: 192.0.2.7": CLIENT,
    "x-forwarded-for: 192.0.2.7": CLIENT,
    "X-Forwarded-For: 192.0.2.7:4711": CLIENT,
    "X-Forwarded-For: ::ffff:192.0.2.7": CLIENT,
    "X-Forwarded-For: 2001:db8::7": "2001:db8::7",
    "X-Forwarded-For: 2001:DB8:0:0::7": "2001:db8::7",
    "X-Forwarded-For: [2001:db8::7]": "2001:db8::7",
    "X-Forwarded-For: [2001:db8::7]:4711": "2001:db8::7",
    "X-Forwarded-For: 198.51.100.1, 192.0.2.7": CLIENT,
    "X-Forwarded-For: 192.0.2.7,10.0.0.2,10.0.0.3": CLIENT,
    "X-Forwarded-For: rubbish, 192.0.2.7": CLIENT,
    "X-Forwarded-For: 10.0.0.3, 10.0.0.2": "10.0.0.3",
    "X-Forwarded-For: 192.0.2.7, unknown": PROXY,
    "X-Forwarded-For: 192.0.2.7, unknown, 10.0.0.2": OUTER,
    "X-Forwarded-For: 192.0.2.7, 999.1.1.1": PROXY,
    "X-Forwarded-For:": PROXY,
    "X-Forwarded-For: ,": PROXY,
    "Forwarded: for=192.0.2.7": CLIENT,
    "forwarded: For=192.0.2.7;proto=http;by=203.0.113.43": CLIENT,
    "Forwarded: proto=https; for=192.0.2.7 ; by=10.0.0.1": CLIENT,
    'Forwarded: for="192.0.2.7:4711"': CLIENT,
    'Forwarded: for="[2001:db8::7]:4711"': "2001:db8::7",
    'Forwarded: for="[2001:db8::7]"': "2001:db8::7",
    'Forwarded: for="\\1\\92.0.2.7"': CLIENT,
    "Forwarded: for=198.51.100.1, for=192.0.2.7": CLIENT,
    "Forwarded: for=192.0.2.7, for=10.0.0.2": CLIENT,
    'Forwarded: for=192.0.2.7;by="a, b;for=1.2.3.4"': CLIENT,
    "Forwarded: for=192.0.2.7, for=unknown": PROXY,
    "Forwarded: for=192.0.2.7, for=_hidden, for=10.0.0.2": OUTER,
    "Forwarded: for=192.0.2.7, proto=https": PROXY,
    "Forwarded:": PROXY,
}


@pytest.mark.parametrize("header", FORWARDED)
def test_the_list_is_walked_from_its_end_past_those_who_are_trusted(header: str) -> None:
    assert client(header) == FORWARDED[header]


def test_several_headers_are_one_list() -> None:
    assert client("X-Forwarded-For: 192.0.2.7", "Host: x", "X-Forwarded-For: 10.0.0.2") == CLIENT
    assert client("Forwarded: for=192.0.2.7", "Forwarded: for=10.0.0.2") == CLIENT


@pytest.mark.parametrize("header", FORWARDED)
def test_who_is_not_trusted_is_not_believed(header: str) -> None:
    assert client(header, address="198.51.100.9") == "198.51.100.9"


def test_who_is_not_trusted_may_send_anything() -> None:
    headers = ('Forwarded: for="', "X-Forwarded-For: 10.0.0.1")
    assert client(*headers, address=CLIENT) == CLIENT


def test_without_a_list_it_is_the_proxy_s() -> None:
    assert client() == PROXY
    assert client("Host: x", "X-Real-IP: 192.0.2.7") == PROXY


def test_both_headers_are_refused_since_one_may_be_the_client_s() -> None:
    with pytest.raises(ForwardedError, match="both Forwarded and X-Forwarded-For"):
        client("X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.7")


@pytest.mark.parametrize(
    "header",
    [
        'for="192.0.2.7',
        'for=1.2.3.4;x=", for=192.0.2.7',
        'for=1.2.3.4;x=", for="[2001:db8::7]"',
        "for=[2001:db8::7]",
        "for=192.0.2.7:4711",
        "192.0.2.7",
        "for=1.2.3.4 for=192.0.2.7",
        "for=",
    ],
)
def test_a_header_that_is_not_well_formed_is_refused(header: str) -> None:
    with pytest.raises(ForwardedError):
        client(f"Forwarded: {header}")


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n")))
def test_whatever_a_client_says_before_it_the_proxy_s_word_counts(said: str) -> None:
    assert client(f"X-Forwarded-For: {said}, {CLIENT}") == CLIENT
    try:
        assert client(f"Forwarded: {said}, for={CLIENT}") == CLIENT
        assert client(f'Forwarded: {said}, for="{CLIENT}";by="{PROXY}"') == CLIENT
    except ForwardedError:
        pass


@pytest.mark.parametrize("part", [" ", ";", "; ", ", ", "a=b;", 'a="', '\\"', "for=1;  "])
def test_a_long_header_is_refused_before_long(part: str) -> None:
    with pytest.raises(ForwardedError):
        client(f"Forwarded: a=b{part * 20_000}@")


@pytest.mark.parametrize(
    ("setting", "trusted", "others"),
    [
        ("127.0.0.1", ["127.0.0.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1", "uid 0"]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], ["11.0.0.0", "::a00:1"]),
        ("::1, fd00::/8", ["::1", "fd00::1"], ["127.0.0.1", "fe00::1"]),
        ("unix", ["uid 0", "uid 1000"], ["127.0.0.1", "rubbish"]),
        (" 192.0.2.1 ,, unix ,", ["192.0.2.1", "uid 5"], ["192.0.2.2"]),
        ("0.0.0.0/0", ["192.0.2.1"], ["2001:db8::1", "uid 5"]),
    ],
)
def test_who_is_named_is_trusted_and_nobody_else(
    setting: str, trusted: list[str], others: list[str]
) -> None:
    proxies = parse(setting)
    assert [address for address in trusted + others if proxies.trusts(address)] == trusted


@pytest.mark.parametrize("setting", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1 ::1"])
def test_what_is_no_address_or_network_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=r"write addresses and networks, separated by commas"):
        parse(setting)
