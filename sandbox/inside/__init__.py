"""Programs that run inside a sandbox: the standard library only, any Python from 3.9 on.

Nothing has to be installed there for them: they are handed over as the text of `python3 -c`.
"""

from functools import cache
from importlib import resources
from typing import Final

_PARTS: Final = ("frames", "confine", "runs")

_LOADER: Final = """\
import sys, types
for name, text in {texts!r}:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules[name].main()
"""


@cache
def program(name: str) -> str:
    """Return `name` as one text that imports its parts as they are imported here."""
    names = [*_PARTS, name] if name == "agent" else [name]
    texts = [("sandbox", ""), (__name__, "")]
    texts += [(f"{__name__}.{part}", _source(part)) for part in names]
    return _LOADER.format(texts=texts)


def _source(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.py").read_text()
