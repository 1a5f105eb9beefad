"""The program for files, run as it is in a sandbox, but here and without one."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.inside import files, program

relaxed = settings(
    deadline=None,
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def do(directory: Path, stdin: bytes = b"", **request: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program("files"), json.dumps(request)],
        cwd=directory,
        input=stdin,
        capture_output=True,
        check=False,
    )


def refusal(directory: Path, **request: Any) -> str:
    """What is said on standard error: one line, and no traceback."""
    done = do(directory, **request)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


def said(directory: Path, **request: Any) -> str:
    """Run the program in this process, which takes a hundredth of the time.

    Returns:
        What it refuses that with, and nothing if it does it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "argv", ["files", json.dumps(request)])
        try:
            files.main()
        except SystemExit as left:
            return str(left.code)
    return ""


def tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def everything(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


# --- reading, writing, listing -------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    assert do(tmp_path, content, do="write", path="a/b/file").returncode == 0
    assert do(tmp_path, do="read", path="a/b/file", max=10**6).stdout == content
    assert everything(tmp_path) == {"a", "a/b", "a/b/file"}


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.touch(mode=0o755)
    do(tmp_path, b"#!/bin/sh\n", do="write", path="script")
    assert script.stat().st_mode & 0o777 == 0o755


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    do(tmp_path, b"text", do="write", path="link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"text"


@pytest.mark.parametrize("what", ["read", "write"])
def test_only_regular_files_are_read_and_written(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path, do=what, path="fifo", max=1) == "fifo: not a regular file\n"
    assert "/dev/zero: not a regular file" in refusal(tmp_path, do=what, path="/dev/zero", max=1)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(11))
    assert "too much to read at once" in refusal(tmp_path, do="read", path="large", max=10)


def test_a_file_that_says_it_is_empty_and_is_not_is_bounded(tmp_path: Path) -> None:
    assert "too much" in refusal(tmp_path, do="read", path="/proc/self/status", max=10)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert refusal(tmp_path, do="read", path="x", max=1) == "x: No such file or directory\n"
    assert refusal(tmp_path, do="list", path="x", max=1) == "x: No such file or directory\n"


def test_a_directory_is_listed_by_name_up_to_a_number(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(5))
    (tmp_path / "a").mkdir()
    (tmp_path / "c").symlink_to("b")
    listed = json.loads(do(tmp_path, do="list", path=".", max=10).stdout)
    assert [(name, kind) for name, kind, _ in listed] == [
        ("a", "directory"),
        ("b", "file"),
        ("c", "link"),
    ]
    assert len(json.loads(do(tmp_path, do="list", path=".", max=2).stdout)) == 2


# --- archives ------------------------------------------------------------------------------------


def test_a_zip_archive_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top.txt", "one")
        archive.writestr("deep/er/file.txt", "two")
    done = do(tmp_path, do="unpack", path="a.zip", target="out")
    assert json.loads(done.stdout) == ["top.txt", "deep/er/file.txt"]
    assert (tmp_path / "out/deep/er/file.txt").read_text() == "two"


def test_a_tar_archive_is_unpacked(tmp_path: Path) -> None:
    tar(tmp_path / "a.tgz", member("dir", tarfile.DIRTYPE), member("dir/file"))
    done = do(tmp_path, do="unpack", path="a.tgz", target=".")
    assert json.loads(done.stdout) == ["dir", "dir/file"]
    assert (tmp_path / "dir/file").is_file()


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "a/..", "..", "..\\out", "\\out", "a\\..\\..\\b"]
)
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_name_that_leads_elsewhere_refuses_the_whole_archive(
    tmp_path: Path, form: str, name: str
) -> None:
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "a", "w") as archive:
            archive.writestr("harmless", "")
            archive.writestr(name, "")
    else:
        tar(tmp_path / "a", member("harmless"), member(name))
    assert "leads out of the target" in refusal(tmp_path, do="unpack", path="a", target="t")
    assert everything(tmp_path) == {"a"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_a_tar_archive_refuse_it(tmp_path: Path, kind: bytes) -> None:
    tar(tmp_path / "a", member("x", kind, "/etc"), member("x/passwd"))
    assert "only files and directories" in refusal(tmp_path, do="unpack", path="a", target="t")
    assert everything(tmp_path) == {"a"}


def test_links_in_a_zip_archive_refuse_it(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr(info, "/etc")
    assert "only files and directories" in refusal(tmp_path, do="unpack", path="a", target="t")


def test_a_link_that_was_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/file").symlink_to(tmp_path / "elsewhere/file")
    tar(tmp_path / "a", member("x/file"))
    assert "a link is in the way" in refusal(tmp_path, do="unpack", path="a", target="t")
    tar(tmp_path / "b", member("file"))
    assert "symbolic links" in refusal(tmp_path, do="unpack", path="b", target="t")
    assert everything(tmp_path / "elsewhere") == set()


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_UNPACKED", 1_000_000)
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(str(number), bytes(100_000))
    with pytest.raises(files.RefusedError, match="unpacks to more than 1000000 bytes"):
        files.unpack(str(tmp_path / "a"), str(tmp_path / "t"))
    assert sum(path.stat().st_size for path in (tmp_path / "t").iterdir()) <= 1_000_000


def test_a_bomb_of_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_MEMBERS", 10)
    tar(tmp_path / "a", *[member(str(number)) for number in range(11)])
    with pytest.raises(files.RefusedError, match="more than 10 files"):
        files.unpack(str(tmp_path / "a"), str(tmp_path / "t"))


@relaxed
@given(st.binary(max_size=500), st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b", b"BZh9"]))
def test_nonsense_is_refused_in_one_line(tmp_path: Path, content: bytes, magic: bytes) -> None:
    (tmp_path / "a").write_bytes(magic + content)
    [_line] = said(tmp_path, do="unpack", path="a", target="t").splitlines()


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_broken_zip_archive_is_refused_in_one_line(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", os.urandom(60))
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0xFF
    path.write_bytes(content)
    assert len(said(tmp_path, do="unpack", path="a", target="t").splitlines()) <= 1


@relaxed
@given(st.lists(st.text("ab./\\\0é", min_size=1, max_size=12), min_size=1, max_size=5))
def test_no_name_leads_out_of_the_target(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("unpack")
    with tarfile.open(directory / "a", "w") as archive:
        for name in names:
            archive.addfile(member(name), io.BytesIO())
    with suppress(files.RefusedError, OSError):
        files.unpack(str(directory / "a"), str(directory / "t"))
    assert {path.name for path in directory.iterdir()} <= {"a", "t"}
