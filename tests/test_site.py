"""The site as `make docs` makes it: without a warning, with every public name, and nothing fetched from elsewhere."""

import contextlib
import functools
import http.server
import importlib
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from tests.public_surface import public_modules

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = {"Instant", "Json", "Text", "Uuid", "at_rest", "create_tables", "insert_ignoring_duplicates", "metadata"}
SHARED |= {"misses_name", "operations", "session_is_lost", "translate", "utc_now"}
NOT_DESCRIBED = {"cloudcore": {"__version__"}, "cloudcore.database": SHARED}
"""What is imported by that name, and is not for users: it may change any day, as the page of the API says."""
REFERENCE = re.compile(r'(?:href|src)="([^"]+)"')
ELSEWHERE = re.compile(r"(https?|mailto|data):")
NAMED = re.compile(r'\sid="([^"]+)"')
LOADED = re.compile(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link [^>]*href="([^"]+)"|@import[^;]*|url\(([^)]+)\)')

pytestmark = [pytest.mark.xdist_group("site"), pytest.mark.timeout(900)]  # making it waits for others on a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning fails."""
    pytest.importorskip("sphinx", reason="no Sphinx: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    # Notebooks are run by tests of their own. Without a run Sphinx does not know their language.
    unrun = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst.header,myst-nb.lexer"]
    options = ["-q", "-W", "--keep-going", "-j", "2", *unrun]
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(folder / "doctrees"), "docs", str(folder / "html")]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    """Each page's path → its text."""
    return {page: page.read_text() for page in site.rglob("*.html")}


def test_every_link_inside_leads_somewhere(site, pages):
    """To a page or file of the site, and to an anchor that the page has."""
    anchors = {page: {*NAMED.findall(text), ""} for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for reference in set(REFERENCE.findall(text)):
            target, _, anchor = reference.partition("#")
            if ELSEWHERE.match(target):
                continue
            path = (page.parent / urllib.parse.unquote(target.partition("?")[0])).resolve() if target else page
            if not path.is_file() or urllib.parse.unquote(anchor) not in anchors.get(path, {""}):
                broken.append((str(page.relative_to(site)), reference))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site, pages):
    """Scripts, styles, fonts and pictures are the site's own: it works on a machine without a network."""
    texts = [*pages.values(), *(sheet.read_text() for sheet in site.rglob("*.css"))]
    fetched = {next((group for group in found if group), "") for text in texts for found in LOADED.findall(text)}
    assert "_static/styles/furo.css" in {reference.partition("?")[0] for reference in fetched}
    assert {reference for reference in fetched if re.match(r"""["']?(https?:)?//""", reference)} == set()


def test_every_public_name_is_described(site):
    """In the API, under a name that it is imported by."""
    text = "\n".join(page.read_text() for page in (site / "reference" / "api").glob("*.html"))
    anchors = set(NAMED.findall(text))
    modules = [importlib.import_module(name) for name in public_modules()]
    described = {
        id(getattr(module, name))
        for module in modules
        for name in module.__all__
        if f"{module.__name__}.{name}" in anchors
    }
    missing = {
        module.__name__: {name for name in module.__all__ if id(getattr(module, name)) not in described}
        for module in modules
    }
    assert {module: names for module, names in missing.items() if names} == NOT_DESCRIBED


def test_diagrams_are_drawn(pages):
    """Once for light and once for dark, in the page itself."""
    (page,) = (text for path, text in pages.items() if path.name == "architecture.html")
    assert page.count('<div class="diagram only-light"><svg') == page.count('<div class="diagram only-dark"><svg') == 1


# Each page in a frame of each width; what is wider than the frame is told, with the element that sticks out furthest.
LOOK = """<!doctype html><meta charset="utf-8"><script>
const look = page => new Promise(done => {
  const frame = Object.assign(document.createElement("iframe"), {src: page, height: 900}), found = [];
  frame.onload = () => {
    const inside = frame.contentDocument, root = inside.documentElement;
    for (const width of [390, 1440, 1600]) {
      frame.width = width;
      if (root.scrollWidth > root.clientWidth) {
        const ends = [...inside.querySelectorAll("body *")].map(one => [one.getBoundingClientRect().right, one]);
        const [, worst] = ends.reduce((a, b) => b[0] > a[0] ? b : a);
        found.push(`${page} at ${width}: ${root.scrollWidth}, ${worst.outerHTML.slice(0, 200)}`);
      }
    }
    frame.remove();
    done(found);
  };
  document.body.append(frame);
});
onload = async () => {
  const found = [];
  onerror = message => found.push(message);
  for (const page of PAGES) found.push(...await look(page));
  fetch("/", {method: "POST", body: JSON.stringify(found)});
};
</script><body></body>"""


def test_no_page_is_wider_than_the_window(site, pages, tmp_path):
    """On a telephone and on large screens, in a real browser: what is wide scrolls by itself."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no browser: apt-get install chromium")
    names = sorted(str(page.relative_to(site)) for page in pages)
    (site / "look.html").write_text(LOOK.replace("PAGES", json.dumps(names)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}"]
    with served(site) as (port, told):
        command = [browser, *options, f"http://127.0.0.1:{port}/look.html"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = told.get(timeout=600)
        finally:
            process.terminate()
            process.wait(30)
    assert found == []


@contextlib.contextmanager
def served(folder):
    """The port at which *folder* is served, and a queue of what is posted there."""
    told = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self):
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, told
        finally:
            server.shutdown()
            thread.join()


def test_spelling():
    """Of prose and docstrings, by codespell's list of common slips."""
    codespell = shutil.which("codespell", path=str(Path(sys.executable).parent))
    if codespell is None:
        pytest.skip("no codespell: pip install --group docs")
    texts = [str(path) for path in REPOSITORY.glob("*.md")]
    done = subprocess.run(
        [codespell, *texts, "docs", "src", "examples"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
