"""Which installation it is: a name that stays, and that no other one has."""

import shutil
from pathlib import Path

import pytest

from clarad import instance


def test_a_name_stays_the_same(tmp_path: Path) -> None:
    assert instance.identify(tmp_path) == instance.identify(tmp_path)


def test_every_state_directory_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = set()
    for number in range(3):
        state_dir = tmp_path / str(number)
        state_dir.mkdir()
        names.add(instance.identify(state_dir))
    assert len(names) == 3


def test_a_name_goes_with_the_directory(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    name = instance.identify(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert instance.identify(tmp_path / "new") == name


def test_a_label_is_what_engines_take(tmp_path: Path) -> None:
    label = instance.label(tmp_path)
    assert label == f"clarad-{instance.identify(tmp_path)}"
    assert len(label) <= 40
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        instance.identify(tmp_path / "nowhere")


def test_a_state_directory_has_one_holder_as_long_as_the_machine_runs(tmp_path: Path) -> None:
    with instance.only_one(tmp_path):
        before = instance.holder(tmp_path)
    with instance.only_one(tmp_path):
        assert instance.holder(tmp_path) == before


def test_who_holds_a_copy_of_a_state_directory_is_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    holder = instance.holder(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert instance.identify(tmp_path / "copy") == instance.identify(tmp_path / "one")
    assert instance.holder(tmp_path / "copy") != holder
