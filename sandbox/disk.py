"""Whether a sandbox's disk has the size that it should have."""

from typing import Final

from sandbox.sandbox import Sandbox

# Space is asked for (fallocate(2)), not written: that takes no time, and counts all the same. Two
# files, since one cannot be larger than the disk.
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


async def keeps_to(sandbox: Sandbox, size: int) -> bool:
    """Try to get twice as much as there is.

    Raises:
        GoneError: the sandbox has ended.
    """
    result = await sandbox.run(["python3", "-I", "-S", "-c", _PROGRAM, str(size)])
    return b"through" not in result.stdout.kept
