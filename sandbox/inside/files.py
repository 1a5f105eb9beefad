"""The program that works with files inside a sandbox, as the sandbox's user.

Its argument is JSON; content comes by standard input and leaves by standard output. What fails is
one line on standard error. Paths are resolved here, by the sandbox's own kernel view: whatever
they point to, links included, is the sandbox's.
"""

from __future__ import annotations

import json
import lzma
import os
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

MAX_UNPACKED = 512 << 20
"""Bytes that an archive may unpack to; the disk's own limit comes on top."""

MAX_MEMBERS = 10_000
"""Files and directories in an archive."""

_CHUNK = 256 << 10
_BROKEN: tuple[type[Exception], ...] = (  # what zipfile and tarfile raise for a broken archive
    zipfile.BadZipFile, tarfile.TarError, NotImplementedError, EOFError, ValueError, RuntimeError,
    zlib.error, lzma.LZMAError,
)  # fmt: skip


class RefusedError(Exception):
    """The text says why."""


class Member(NamedTuple):
    """What an archive has, in either format."""

    name: str
    is_directory: bool
    content: Any  # what the archive's own `open` takes


def read(path: str, most: int) -> None:
    """Write a regular file to standard output."""
    # Not blocking: a FIFO without a writer would never open.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        raise RefusedError("not a regular file")
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError("not a regular file")
        if found.st_size > most:
            raise RefusedError(
                f"{found.st_size} bytes are too much to read at once; at most {most}"
            )
        content = file.read(most + 1)
        if len(content) > most:
            raise RefusedError(f"too much to read at once; at most {most} bytes")
        sys.stdout.buffer.write(content)


def write(path: str, content: IO[bytes]) -> None:
    """Put a file in its place in one step, so that a cut-off write leaves the old one."""
    path = os.path.realpath(path)  # a link stays, and what it points to is written
    if os.path.exists(path) and not os.path.isfile(path):
        raise RefusedError("not a regular file")
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".write-")
    try:
        with open(descriptor, "wb") as file:
            while data := content.read(_CHUNK):
                file.write(data)
        mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def listing(path: str, most: int) -> list[tuple[str, str, int]]:
    """Return name, kind and size of what is in a directory."""
    entries: list[tuple[str, str, int]] = []
    with os.scandir(path) as found:
        for entry in found:
            if len(entries) == most:
                break
            mode = entry.stat(follow_symlinks=False)
            kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
            entries.append((entry.name, kind.get(stat.S_IFMT(mode.st_mode), "other"), mode.st_size))
    return sorted(entries)


def unpack(path: str, target: str) -> list[str]:
    """Unpack an archive below `target`, and nowhere else; return what was written.

    It is refused as a whole for a name that leads elsewhere, and for whatever is neither a file
    nor a directory: a link could make a later name lead elsewhere.
    """
    archive, members = _opened(path)
    with archive:
        if len(members) > MAX_MEMBERS:
            raise RefusedError(f"more than {MAX_MEMBERS} files are in it")
        for member in members:
            _check(member.name)
        left = MAX_UNPACKED
        target = os.path.realpath(target)
        for member in members:
            place = os.path.join(target, os.path.normpath(member.name))
            if os.path.realpath(os.path.dirname(place)) != os.path.dirname(place):
                raise RefusedError(f"{member.name}: a link is in the way")
            if member.is_directory:
                os.makedirs(place, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(place), exist_ok=True)
            left = _extract(archive, member, place, left)
    return [member.name for member in members]


def _opened(path: str) -> tuple[Any, list[Member]]:
    if zipfile.is_zipfile(path):
        zipped = zipfile.ZipFile(path)
        return zipped, list(_zip_members(zipped))
    try:
        tarred = tarfile.open(path)  # noqa: SIM115 - the caller closes it
    except (tarfile.TarError, EOFError):
        raise RefusedError("neither a zip nor a tar archive") from None
    return tarred, list(_tar_members(tarred))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedError(f"{info.filename}: only files and directories are unpacked")
        if info.flag_bits & 1:
            raise RefusedError(f"{info.filename}: it is encrypted")
        yield Member(info.filename, info.is_dir(), info)


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for number, info in enumerate(archive):
        if number == MAX_MEMBERS:
            raise RefusedError(f"more than {MAX_MEMBERS} files are in it")
        if not info.isreg() and not info.isdir():
            raise RefusedError(f"{info.name}: only files and directories are unpacked")
        yield Member(info.name, info.isdir(), info)


def _check(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or not name:
        raise RefusedError(f"{name!r} leads out of the target")


def _extract(archive: Any, member: Member, place: str, left: int) -> int:
    """Write one file; return how many bytes may still be written."""
    tarred = isinstance(archive, tarfile.TarFile)
    source = archive.extractfile(member.content) if tarred else archive.open(member.content)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, open(os.open(place, flags, 0o644), "wb") as file:
        while data := source.read(_CHUNK):  # what it says of its sizes need not be true
            left -= len(data)
            if left < 0:
                raise RefusedError(f"it unpacks to more than {MAX_UNPACKED} bytes")
            file.write(data)
    return left


def do(request: dict[str, Any]) -> None:
    """Do what was asked for."""
    path, what = request["path"], request["do"]
    if what == "read":
        read(path, request["max"])
    elif what == "write":
        write(path, sys.stdin.buffer)
    elif what == "list":
        print(json.dumps(listing(path, request["max"])))
    else:
        print(json.dumps(unpack(path, request["target"])))


def main() -> None:
    """Do it, or say in one line why not."""
    request = json.loads(sys.argv[1])
    path = request["path"]
    try:
        do(request)
    except RefusedError as error:
        sys.exit(f"{path}: {error}")
    except OSError as error:
        sys.exit(f"{error.filename or path}: {error.strerror or error}")
    except _BROKEN as error:
        sys.exit(f"{path}: {error}")
