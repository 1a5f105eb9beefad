"""Lists for people: aligned columns with headings of their own."""

import pytest

from clarad.cli import listing


def test_no_two_columns_have_the_same_heading(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"last": "ok", "last_at": None, "next_at": None}
    listing.show([row], ["last", "last_at", "next_at"], as_json=False)
    heading, _ = capsys.readouterr().out.splitlines()
    assert heading.split("  ") == ["last", "last at", "next"]


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200f", "\x1b", "\x9b"])
def test_what_a_program_has_written_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], character: str
) -> None:
    listing.show_one({"run": "1", "stdout": f"a{character}b"}, as_json=False)
    shown = capsys.readouterr().out
    assert "a" in shown
    assert character not in shown
