"""What the README and the documentation show is true: their Python blocks run, their links lead somewhere.

All blocks of a file run in order and in one namespace, in an empty folder. A block that needs real services is opened
with ```python no-run and only has to be valid Python; expected output goes into ```text.
"""

import ast
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]

SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["*.md"])

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"^```python no-run\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^ *```+ *(py.*?) *$", re.MULTILINE | re.IGNORECASE)
MEASURED = re.compile(r"[\d.,]+ ?(?:ms|µs|MB|\w+/s|times as|times the|(?:claims|pages|calls) a second)\b")
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    examples = list(SYBIL.parse(page).examples())
    opened = PYTHON.findall(page.read_text())
    assert len(examples) == opened.count("python"), "a block is not seen"
    assert {*opened} <= {"python", "python no-run"}, "a block is neither run nor said not to be"
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_that_are_not_run_are_python(page):
    """At least their syntax."""
    for block in NOT_RUN.findall(page.read_text()):
        ast.parse(block)


def _anchors(page):
    """The fragments that a page's headings can be reached by."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_what_was_measured_stands_on_the_page_of_figures():
    """Which its files make; a figure in the prose of another page would grow old unseen."""
    others = [page for page in PAGES if page.stem != "figures"]
    told = {page.stem: MEASURED.findall(FENCE.sub("", page.read_text())) for page in others}
    assert {page: found for page, found in told.items() if found} == {}
    (figures,) = [page for page in PAGES if page.stem == "figures"]
    assert MEASURED.findall(figures.read_text()), "where there are some, they are seen"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    """Links inside the repository name files that exist, and headings that exist in them."""
    broken = []
    for match in LINK.finditer(FENCE.sub("", page.read_text())):
        target = match.group(1) or match.group(2)
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []
