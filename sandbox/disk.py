"""Verifies the limit of a sandbox's disk, from inside."""

from typing import Final

from sandbox.sandbox import Sandbox

# The space is allocated (fallocate(2)) and not written, which takes no time. It takes two files,
# since the limit of a file's size is that of the disk.
_PROGRAM: Final = """
import os, sys
size = int(sys.argv[1])
names = (".first", ".second")
try:
    for name in names:
        with open(name, "wb") as file: os.posix_fallocate(file.fileno(), 0, size)
    print("through")
except OSError: pass
finally:
    for name in names:
        try: os.unlink(name)
        except OSError: pass
"""


async def has_disk_limit(sandbox: Sandbox, size: int) -> bool:
    """Return whether a sandbox fails to allocate twice `size`.

    Raises:
        GoneError: the sandbox has ended.
    """
    result = await sandbox.run(["python3", "-I", "-S", "-c", _PROGRAM, str(size)])
    return b"through" not in result.stdout.kept
