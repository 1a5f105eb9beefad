"""The catalogue: what `journalctl -x` shows below a record."""

import re

import pytest

from clarad.systemd.catalogue import ENTRIES, Entry, as_catalogue
from clarad.systemd.journal import NAME


def test_no_two_entries_share_an_id() -> None:
    assert len({entry.message_id for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.subject)
def test_an_entry_has_an_id_of_128_bits_and_says_what_to_do(entry: Entry) -> None:
    assert re.fullmatch("[0-9a-f]{32}", entry.message_id)
    assert "\n" not in entry.subject
    assert entry.text.endswith(":" if entry.commands else ".")
    for field in re.findall("@(.*?)@", " ".join([entry.text, *entry.commands])):
        assert NAME.fullmatch(field)


def test_entries_are_apart_and_begin_as_journald_reads_them() -> None:
    heads = re.findall(
        r"(?m)^-- ([0-9a-f]{32})\nSubject: (.+)\nDefined-By: clarad\n\n", as_catalogue()
    )
    assert heads == [(entry.message_id, entry.subject) for entry in ENTRIES]
