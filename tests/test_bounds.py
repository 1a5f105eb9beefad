"""docs/bounds.md, the page of limits, says what the code does."""

from pathlib import Path

from clarad.messages.inflight import MAX_WAITING
from docs import bounds


def test_the_page_is_made_from_the_constants() -> None:
    page = Path(bounds.__file__).with_name("bounds.md").read_text()
    assert page == bounds.page(), "run `make generate`"


def test_a_row_has_the_value_and_the_name_of_its_constant() -> None:
    row = f"| messages that wait in a channel | {MAX_WAITING}, then `queue_full` | "
    assert f"{row}`messages.inflight.MAX_WAITING` |" in bounds.page().splitlines()


def test_a_setting_is_named_as_it_is_set() -> None:
    row = next(row for row in bounds.page().splitlines() if row.startswith("| time for an answer "))
    assert row == "| time for an answer | 5 min, then `timeout` | `CLARA_MESSAGE_TIMEOUT` |"
