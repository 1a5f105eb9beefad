"""What daemons say to each other: it comes as it was said, and it fits into a NOTIFY."""

from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.protocol import Id
from clarad.store import (
    CancelAsked,
    ChannelMoved,
    MembersChanged,
    NodeCame,
    NodeOwed,
    Notice,
    TasksChanged,
)
from clarad.store.notify import decode, encode

TOO_LONG: Final = 8000
"""Bytes: with the settings that PostgreSQL comes with, a payload has to be shorter (NOTIFY)."""

# Some characters take six bytes as JSON, others four as UTF-8; none takes more.
_COSTLY: Final = st.sampled_from(["\x01", "\x7f", '"', "\\", "\N{CRAB}", "\N{EURO SIGN}"])


def _texts(longest: int) -> st.SearchStrategy[str]:
    return st.text(max_size=longest) | _COSTLY.map(lambda character: character * longest)


def _is_an_id(text: str) -> bool:
    try:
        msgspec.convert(text, Id)
    except msgspec.ValidationError:
        return False
    return True


ids: Final = _texts(255).filter(_is_an_id)
notices: Final[st.SearchStrategy[Notice]] = st.one_of(
    st.builds(MembersChanged),
    st.builds(TasksChanged),
    st.builds(ChannelMoved, ids, ids, st.integers(1, 2**63 - 1)),
    st.builds(CancelAsked, ids, ids),
    st.builds(NodeOwed, ids, ids),
    st.builds(NodeCame, ids, ids, st.integers(0, 2**63 - 1)),
)


@given(notices)
def test_a_notice_comes_as_it_was_said(notice: Notice) -> None:
    assert decode(encode(notice).encode()) == notice


@given(notices)
def test_a_notice_fits_whatever_its_ids_are(notice: Notice) -> None:
    assert len(encode(notice).encode()) < TOO_LONG


@pytest.mark.parametrize("character", ["\x01", "\N{CRAB}", '"'])
def test_the_longest_that_there_is_fits(character: str) -> None:
    an_id = character * 255
    longest = NodeCame(an_id, an_id, 2**63 - 1)
    assert len(encode(longest).encode()) < TOO_LONG


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"members",
        b"{}",
        b'{"type":"later"}',
        b'{"type":"owed","node_id":"n"}',
        b'{"type":"owed"',
        b'{"type":"owed","platform":"\xff","node_id":"n"}',
    ],
)
def test_what_only_another_clarad_understands_is_nothing(said: bytes) -> None:
    assert decode(said) is None


def test_what_a_later_clarad_adds_to_a_notice_is_passed_over() -> None:
    later = b'{"type":"owed","platform":"p","node_id":"n","since":1}'
    assert decode(later) == NodeOwed("p", "n")
