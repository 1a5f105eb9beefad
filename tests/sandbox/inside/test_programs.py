"""What is handed to a sandbox's own Python runs on whatever is there."""

import ast
import sys
from pathlib import Path

import pytest

import sandbox.inside
from sandbox.inside import program

MODULES = sorted(Path(sandbox.inside.__file__).parent.glob("[a-z]*.py"))
MAX_ARGUMENT = 128 << 10
"""Linux takes no longer argument (MAX_ARG_STRLEN)."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_is_python_3_9_and_needs_the_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names | {"sandbox"}


@pytest.mark.parametrize("name", ["agent", "files", "interpreter"])
def test_a_program_fits_into_an_argument(name: str) -> None:
    assert len(program(name)) < MAX_ARGUMENT
