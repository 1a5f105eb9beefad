"""What README and docs/ name is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GLOSSARY = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/glossary.md").read_text().splitlines()
    if line.startswith("| ")
][2:]


def anchors(page: Path) -> set[str]:
    """Return what `#…` may follow a link to this page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_glossary_is_sorted() -> None:
    terms = [row[0].lower() for row in GLOSSARY]
    assert terms == sorted(terms)


@pytest.mark.parametrize("row", GLOSSARY, ids=lambda row: row[0])
def test_a_term_of_the_glossary_is_in_a_module_that_is_there(row: list[str]) -> None:
    _, _, where, _ = row
    for module in re.findall(r"`([a-z_.]+)`", where):
        assert find_spec(module if module.startswith("sandbox.") else f"clarad.{module}"), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text()):
        assert (ROOT / path).exists() or (ROOT / "clarad" / path).exists(), path
