"""Files of the daemon's own."""

from pathlib import Path

import pytest

from clarad import files


def test_a_file_that_cannot_be_reached_any_more_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    with (directory / "lock").open("w") as lock:
        held = files.Held(directory / "lock", lock.fileno())
        held.require()
        directory.rename(tmp_path / "moved")
        directory.symlink_to(directory)  # there, and leads nowhere: neither found nor missing
        with pytest.raises(files.Gone, match="cannot be reached any more") as caught:
            held.require()
    assert str(caught.value).startswith(f"{directory}/lock ")
