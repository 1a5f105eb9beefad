"""A test that hangs ends, says where it hung, and the others run."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]

CONFTEST = """
import pytest

pytest_plugins = ["tests.deadline"]

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.deadline(0.5, grace=0.5))
"""


def run(directory: Path, test: str, *options: str) -> str:
    """Run a file of tests, each of which has half a second; return what pytest says."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(test)
    fixed = ["--rootdir=.", "-p", "no:cacheprovider", "-o", "trio_mode=true"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *fixed, "-o", f"pythonpath={ROOT}", *options],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stdout


HANGING = """
import time
import pytest
import trio

async def sleep():
    await trio.sleep_forever()

async def spin():
    while True:
        await trio.lowlevel.checkpoint()

async def block():
    time.sleep(3600)

@pytest.mark.parametrize("hang", [sleep, spin, block])
async def test_hangs(hang):
    await hang()

def test_hangs_without_trio():
    time.sleep(3600)

def test_passes():
    pass
"""


def test_one_that_hangs_fails_with_every_stack_and_the_next_one_runs(tmp_path: Path) -> None:
    said = run(tmp_path, HANGING)
    assert "4 failed, 1 passed" in said
    assert said.count("it has not ended within 0.5 s") >= 4
    assert all(f"in {where}" in said for where in ("sleep", "spin", "block", "test_hangs"))
    assert said.count("thread MainThread") >= 4


IMMORTAL = """
import time

def test_does_not_give_up():
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass

def test_passes():
    pass
"""


def test_one_that_does_not_end_takes_its_process_along_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    said = run(tmp_path, IMMORTAL, "-n", "1")
    assert "crashed while running 'test_it.py::test_does_not_give_up'" in said
    assert "1 failed, 1 passed" in said
    assert "Timeout (0:00:01)!" in said
