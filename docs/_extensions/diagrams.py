"""Mermaid's diagrams as SVG in the page, drawn while the site is made: once for light pages and once for dark ones."""

import hashlib
import re

import mmdr
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FONT = '"themeVariables": {"fontFamily": "arial, sans-serif", "fontSize": "13px"}'
THEMES = {"only-light": "neutral", "only-dark": "dark"}


def draw(source: str, theme: str) -> str:
    """The diagram as an SVG element whose ids are its own, so that a page may hold several."""
    drawn = mmdr.render(f'%%{{init: {{"theme": "{theme}", {FONT}}}}}%%\n{source}').svg()
    own = "diagram-" + hashlib.sha256((theme + source).encode()).hexdigest()[:12]
    width = re.search(r'viewBox="\S+ \S+ (\S+)', drawn)
    readable = f' style="min-width:{0.6 * float(width[1]):.0f}px;' if width else ' style="'
    return re.sub(r"\bmerman(?=\b|_)", own, drawn).replace(' style="', readable, 1)


class Mermaid(SphinxDirective):
    """A fence of mermaid."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        return [
            nodes.raw("", f'<div class="diagram {only}">{draw(source, theme)}</div>', format="html")
            for only, theme in THEMES.items()
        ]


def setup(app):
    app.add_directive("mermaid", Mermaid)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
