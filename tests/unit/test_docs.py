"""What the documents say is there, is there."""

import re
from pathlib import Path
from typing import get_args

import pytest

from opdlm.config import Decoding

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Else a reader would be sent to a page or a section that does not exist."""
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), f"{target}#{anchor}"


def test_every_decoding_is_explained() -> None:
    """Else a setting could be used that no document names."""
    text = (ROOT / "docs" / "decoding.md").read_text("utf-8")
    for choice in get_args(get_args(Decoding)[0]):
        assert re.search(rf"`{choice.model_fields['kind'].default}[`\[:]", text)
        for name in set(choice.model_fields) - {"kind", "auto"}:
            assert f"`{name}`" in text, (choice, name)
