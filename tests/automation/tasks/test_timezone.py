from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clarad.automation.tasks import timezone

BERLIN: Final = ZoneInfo("Europe/Berlin")
LORD_HOWE: Final = ZoneInfo("Australia/Lord_Howe")
APIA: Final = ZoneInfo("Pacific/Apia")
KOLKATA: Final = ZoneInfo("Asia/Kolkata")


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "Etc/GMT+2", "America/Argentina/Salta"])
def test_a_time_zone_has_a_name(name: str) -> None:
    assert timezone.find(name).key == name


def test_every_time_zone_that_there_is_can_be_found() -> None:
    assert {timezone.find(name).key for name in available_timezones()} == available_timezones()


ANY: Final = "write a name such as Europe/Berlin or UTC"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("Berln", "did you mean Europe/Berlin?"),
        ("Germany/Berlin", "did you mean Europe/Berlin?"),
        ("America/New York", "did you mean America/New_York?"),
        ("new york", "did you mean America/New_York?"),
        ("Europe", ANY),
        ("CEST", ANY),
        ("PST", ANY),
        ("GMT+2", ANY),
        ("+02:00", ANY),
        ("", ANY),
        ("../../etc/passwd", ANY),
        ("/etc/localtime", ANY),
        ("tzdata.zi", ANY),
        ("a" * 300, ANY),
        ("Europe/\udcff", ANY),
    ],
)
def test_a_time_zone_that_does_not_exist_is_guessed(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        timezone.find(name)
    assert str(caught.value) == said


@given(st.text(st.characters(exclude_characters="\0")))
def test_whatever_is_called_a_time_zone_it_is_found_or_refused(name: str) -> None:
    said = ""
    try:
        assert timezone.find(name).key == name
    except ValueError as error:
        said = str(error)
    assert said in ("", ANY) or said.startswith("did you mean ")


# --- the machine's -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Asia/Kolkata", ":Asia/Kolkata"])
def test_the_environment_says_where_the_machine_is(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TZ", name)
    assert timezone.of_machine() is KOLKATA


def test_a_zone_that_is_a_file_without_a_name_is_the_same_at_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    localtime = tmp_path / "localtime-of-this-test"
    localtime.write_bytes((resources.files("tzdata") / "zoneinfo/Asia/Kolkata").read_bytes())
    monkeypatch.setenv("TZ", f"{localtime}")
    zone = timezone.of_machine()
    assert zone.utcoffset(datetime(2027, 1, 1)) == timedelta(hours=5, minutes=30)
    assert timezone.of_machine() is zone


def test_a_machine_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    timezone.of_machine()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert timezone.of_machine() is BERLIN


@pytest.mark.parametrize(
    "name", ["Nowhere/Atall", "CET-1CEST,M3.5.0,M10.5.0/3", "/etc/passwd", "../x", "Europe"]
)
def test_a_machine_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TZ", name)
    said = "this machine's time zone cannot be told: set TZ to a name such as Europe/Berlin"
    with pytest.raises(ValueError, match=said):
        timezone.of_machine()


# --- clocks on walls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall", "zone", "instant"),
    [
        ("2027-01-01 12:00", BERLIN, "2027-01-01 11:00"),
        ("2027-07-01 12:00", BERLIN, "2027-07-01 10:00"),
        ("2027-03-28 01:59:59", BERLIN, "2027-03-28 00:59:59"),
        ("2027-03-28 03:00", BERLIN, "2027-03-28 01:00"),
        ("2027-10-31 01:59", BERLIN, "2027-10-30 23:59"),
        ("2027-10-31 03:00", BERLIN, "2027-10-31 02:00"),
    ],
)
def test_a_clock_on_a_wall_means_a_moment(wall: str, zone: ZoneInfo, instant: str) -> None:
    found = timezone.instant(datetime.fromisoformat(wall), zone)
    assert found == datetime.fromisoformat(instant).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("wall", "zone", "instant"),
    [
        ("2027-03-28 02:00", BERLIN, "2027-03-28 01:00"),
        ("2027-03-28 02:30", BERLIN, "2027-03-28 01:00"),
        ("2027-03-28 02:59:59.999999", BERLIN, "2027-03-28 01:00"),
        ("2026-10-04 02:15", LORD_HOWE, "2026-10-03 15:30"),
        ("2011-12-30 12:00", APIA, "2011-12-30 10:00"),
    ],
    ids=["the first", "in the middle", "the last", "of half an hour", "of a whole day"],
)
def test_what_a_clock_skips_is_right_after_the_gap(wall: str, zone: ZoneInfo, instant: str) -> None:
    found = timezone.instant(datetime.fromisoformat(wall), zone)
    assert found == datetime.fromisoformat(instant).replace(tzinfo=UTC)


def test_what_a_clock_shows_twice_is_the_first_time() -> None:
    wall = datetime(2027, 10, 31, 2, 30)
    first = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)
    assert timezone.instant(wall, BERLIN) == first
    assert timezone.instant(wall.replace(fold=1), BERLIN) == first


def test_what_no_clock_shows_is_an_error() -> None:
    with pytest.raises(OverflowError):
        timezone.instant(datetime(1, 1, 1), BERLIN)


MOMENTS: Final = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2037, 1, 1))


@settings(deadline=None)
@given(MOMENTS, st.sampled_from([BERLIN, LORD_HOWE, APIA, KOLKATA, ZoneInfo("America/St_Johns")]))
@example(datetime(2027, 3, 28, 2, 30), BERLIN)
@example(datetime(2027, 10, 31, 2, 30, 0, 1), BERLIN)
def test_it_is_the_first_moment_at_which_the_clock_shows_this_or_more(
    wall: datetime, zone: ZoneInfo
) -> None:
    def shown(moment: datetime) -> datetime:
        return moment.astimezone(zone).replace(tzinfo=None)

    found = timezone.instant(wall, zone)
    assert shown(found - timedelta(microseconds=1)) < wall <= shown(found)
