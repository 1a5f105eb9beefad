"""`clarad setup-systemd` where it has nothing to set up, and what it would write.

That it sets a machine up, and takes it back, is tested on one: tests/on_systemd/test_setup.py.
"""

from pathlib import Path

import pytest

from clarad.cli import main, setup_systemd
from tests.unprivileged import unprivileged

ROOT = Path(__file__).parents[2]
EXECUTABLE = Path("/opt/pipx/venvs/clarad/bin/clarad")


def text_of(name: str) -> str:
    """What would be written to the file of this name."""
    [found] = [file.text for file in setup_systemd.files(EXECUTABLE) if file.target.name == name]
    return found


def test_the_unit_is_the_packages_with_the_path_of_the_command() -> None:
    packaged = (ROOT / "systemd" / "clarad.service").read_text()
    unit = text_of("clarad.service")
    assert f"ExecStart={EXECUTABLE} run\n" in unit
    assert f" {EXECUTABLE} reload\n" in unit
    back = unit.replace(str(EXECUTABLE), "/usr/bin/clarad").replace(
        "/usr/local/share", "/usr/share"
    )
    assert back == packaged


def test_a_file_that_is_there_is_shown_as_a_diff(tmp_path: Path) -> None:
    file = setup_systemd.File(tmp_path / "unit", "one\nthree\n")
    (tmp_path / "unit").write_text("one\ntwo\n")
    assert "-two\n+three\n" in file.change


def test_a_file_that_is_as_it_should_be_is_no_change(tmp_path: Path) -> None:
    file = setup_systemd.File(tmp_path / "new" / "unit", "one\n")
    assert "+one\n" in file.change
    file.write()
    assert file.change == ""


def test_everybody_can_read_what_is_written(tmp_path: Path) -> None:
    file = setup_systemd.File(tmp_path / "new" / "unit", "one\n")
    file.write()
    assert file.target.stat().st_mode & 0o777 == 0o644
    assert file.target.parent.stat().st_mode & 0o777 == 0o755


def test_only_root_can_do_that(capsys: pytest.CaptureFixture[str]) -> None:
    with unprivileged():
        assert main(["setup-systemd"]) == 1
    assert capsys.readouterr() == ("", "clarad: only root can do that: sudo clarad setup-systemd\n")
