"""Fails if a test was skipped that the list does not have: `no_skips.py REPORT LIST`."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report: Path, allowed: Path) -> int:
    """Compare pytest's JUnit report with the list of tests that may be skipped."""
    lines = allowed.read_text().splitlines()
    may_skip = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314 - pytest wrote it
    skipped = {
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("skipped") is not None
    }
    undeclared = sorted(skipped - may_skip)
    for name in undeclared:
        print(f"skipped, and not in {allowed}: {name}", file=sys.stderr)
    print(f"{len(cases)} tests, {len(skipped)} skipped, {len(undeclared)} of them undeclared")
    return 1 if undeclared or not cases else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
