"""Files of the daemon's own: made once, whoever is faster, and whole after a power cut."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clarad.config import files

TOGETHER = 8
"""Threads that make the same thing at once, as processes that start do."""


@pytest.mark.parametrize("make", [files.make, files.make_directory])
def test_what_several_make_at_once_is_made(tmp_path: Path, make: Callable[[Path], None]) -> None:
    barrier = threading.Barrier(TOGETHER)

    def make_one(number: int) -> None:
        barrier.wait()
        make(tmp_path / f"{number}")

    with ThreadPoolExecutor(TOGETHER) as pool:
        for number in range(200):
            made = [pool.submit(make_one, number) for _ in range(TOGETHER)]
            for one in made:
                one.result()


def test_a_link_that_leads_nowhere_is_not_made_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        files.make(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_a_link_beside_a_file_that_is_replaced_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file.new").symlink_to(tmp_path / "other")
    files.replace(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert not (tmp_path / "other").exists()


def test_a_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        text = "" if path.is_dir() else path.read_text()
        synced.append((text, [one.name for one in tmp_path.iterdir()]))

    monkeypatch.setattr(os, "fsync", fsync)
    files.replace(tmp_path / "file", "text")
    assert synced == [("text", ["file.new"]), ("", ["file"])]


def test_a_file_that_cannot_be_reached_any_more_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    with (directory / "lock").open("w") as lock:
        held = files.Held(directory / "lock", os.fstat(lock.fileno()), "Do this")
        held.require()
        directory.rename(tmp_path / "moved")
        directory.symlink_to(directory)  # there, and leads nowhere: neither found nor missing
        with pytest.raises(files.Gone, match="cannot be reached any more") as caught:
            held.require()
    assert str(caught.value).startswith(f"{directory}/lock ")
