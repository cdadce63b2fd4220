"""What the README and the pages under docs/ point at is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TREE_NAME = re.compile(r"[\w./]+\.(?:py|md)|[\w./]+/")


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in HEADING.findall(page.read_text())}


def dead_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (fragment and fragment not in anchors(path)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_the_readmes_tree_is_the_tree() -> None:
    tree = (ROOT / "README.md").read_text().partition("\nalbireo/\n")[2].partition("```")[0]
    inside, _, beside = tree.partition("\ntests/")
    # a line is names, two spaces or more, what they are
    names = [name for line in inside.splitlines() for name in TREE_NAME.findall(re.split(r"\s{3,}", line.strip())[0])]
    assert len(names) > 30
    assert [name for name in names if not (ROOT / "albireo" / name).exists()] == []
    folders = {path.parent.name for path in (ROOT / "albireo").glob("*/__init__.py")}
    assert folders - {name.rstrip("/") for name in names} == set()
    assert beside
