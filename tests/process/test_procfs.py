import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from clarad.process import procfs
from clarad.process.procfs import UnkillableError

names = st.text(st.characters(exclude_characters="\0=", codec="utf-8"), min_size=1)
values = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
environments = st.dictionaries(names, values)


def encoded(environment: dict[str, str]) -> bytes:
    """Return an environment as a process has it."""
    return "".join(f"{name}={value}\0" for name, value in environment.items()).encode()


@contextmanager
def sleeping(*words: str, env: dict[str, str] | None = None) -> Iterator[int]:
    with subprocess.Popen(words, env=env, start_new_session=True) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@given(environments, names)
def test_a_variable_is_found_in_an_environment(environment: dict[str, str], name: str) -> None:
    for each in [*environment, name]:
        assert procfs.variable(each, encoded(environment)) == environment.get(each)


def test_a_part_of_a_name_is_no_name() -> None:
    environment = encoded({"MY_NAME": "mine", "TEXT": "NAME=text", "NAMES": "many"})
    assert procfs.variable("NAME", environment) is None


def test_what_a_process_began_with_is_known() -> None:
    begun = procfs.now()
    with sleeping("sleep", "1000", env={"PATH": os.defpath, "NAME": "value"}) as pid:
        its = procfs.stat(pid)
        assert its is not None
        assert begun <= its.began <= procfs.now()
        assert (its.parent, its.session, its.is_dead) == (os.getpid(), pid, False)
        while (environ := procfs.environ(pid)) is None:  # its execve(2) has not ended
            pass
        assert procfs.variable("NAME", environ) == "value"


@pytest.mark.parametrize("name", ["a b", "a) Z 1 (b", "(", "))", "a\nb"])
def test_a_process_may_have_any_name(tmp_path: Path, name: str) -> None:
    shutil.copy(shutil.which("sleep") or "sleep", tmp_path / name)
    with sleeping(str(tmp_path / name), "1000") as pid:
        its = procfs.stat(pid)
        assert its is not None
        assert (its.parent, its.session, its.is_dead) == (os.getpid(), pid, False)


def test_of_a_process_that_has_ended_nothing_is_known() -> None:
    with sleeping("sleep", "1000") as pid:
        assert procfs.living([pid]) == {pid}
    assert procfs.stat(pid) is None
    assert procfs.environ(pid) == b""
    assert procfs.living([pid]) == set()


@contextmanager
def ended() -> Iterator[int]:
    """A process that has ended, and whose exit status nobody has taken."""
    with sleeping("true") as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        yield pid


def test_a_process_whose_exit_status_nobody_has_taken_does_not_live() -> None:
    with ended() as pid:
        its = procfs.stat(pid)
        assert its is not None
        assert its.is_dead
        assert procfs.living([pid]) == set()


def test_all_below_a_process_is_found() -> None:
    with subprocess.Popen(
        ["sh", "-c", "(sleep 1000 & sleep 1000 & echo; wait) & wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = procfs.with_descendants([process.pid])
        assert len(found) == 4
        assert found == procfs.living(found)
        os.killpg(process.pid, 9)


async def test_where_nothing_is_found_nothing_is_ended() -> None:
    async def look(known: set[int]) -> set[int]:
        return known

    assert await procfs.terminate(look, 0) == 0


async def test_what_is_found_later_is_told_to_end_too() -> None:
    """A long grace: who is not told within it is killed."""
    with (
        subprocess.Popen(["sleep", "1000"]) as first,  # noqa: ASYNC220 - it blocks for a moment
        subprocess.Popen(["sleep", "1000"]) as second,  # noqa: ASYNC220
    ):
        looks = iter([{first.pid}, {second.pid}])

        async def look(known: set[int]) -> set[int]:
            await trio.lowlevel.checkpoint()
            first.poll(), second.poll()
            return procfs.living(next(looks, known))

        with trio.fail_after(10):
            await procfs.terminate(look, 2)
    assert (first.returncode, second.returncode) == (-signal.SIGTERM, -signal.SIGTERM)


async def test_a_process_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "UNKILLABLE", 0.1)

    async def look(known: set[int]) -> set[int]:
        return {pid}

    with ended() as pid, pytest.raises(UnkillableError, match=rf"processes \[{pid}\] do not end"):
        await procfs.terminate(look, 0)
