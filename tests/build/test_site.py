"""What the site is made of: a page for every public name, and a check of its links that sees what is wrong."""

import re

import pytest

import fastmeta
import fastmeta.data
from harness.places import ROOT
from pages.check_links import faults

DOCS = ROOT / "docs"
OPS = {path.stem for family in ("distance", "inner") for path in (DOCS.parent / "fastmeta" / family).glob("[a-z]*.py")}


def test_every_public_name_has_its_place():
    written = [
        name for page in DOCS.glob("*.md") for name in re.findall(r"^::: fastmeta\.(\S+)$", page.read_text(), re.M)
    ]
    assert len(written) == len(set(written))
    of_parts = {f"{part}.{name}" for part in ("data", "heads", "ragged") for name in getattr(fastmeta, part).__all__}
    assert {*fastmeta.__all__, *of_parts} - OPS <= set(written)


@pytest.fixture
def found(tmp_path):
    """The faults of a site with this page and an empty one."""

    def of(text):
        (tmp_path / "other.html").write_text('<h1 id="here">Other</h1>')
        (tmp_path / "page.html").write_text(text)
        return faults(tmp_path)

    return of


@pytest.mark.parametrize(
    "text, fault",
    [
        (
            '<a href="other.html#here"><a href="#own" id="own"><a href="https://example.org"><img src="other.html">',
            None,
        ),
        ('<a href="gone.html">', "gone.html leads nowhere"),
        ('<a href="other.html#gone">', "other.html#gone has no such anchor"),
        ('<a href="#gone">', "#gone has no such anchor"),
        ('<img src="gone.png">', "gone.png leads nowhere"),
        ('<script src="https://example.org/a.js">', "https://example.org/a.js is fetched from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "//example.org/a.css is fetched from elsewhere"),
    ],
)
def test_links(found, text, fault):
    assert found(text) == ([] if fault is None else [f"page.html: {fault}"])


def test_an_empty_site_is_a_fault(tmp_path):
    assert faults(tmp_path / "nowhere") != []
