"""How Sphinx makes the site: `make docs`, or `sphinx-build -W docs build/site`."""

import sys
import zipfile
from pathlib import Path

import cloudcore

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_extensions"))

NOTEBOOKS = any(HERE.glob("notebooks/*.md"))

# Examples of several files are downloads of the site, for those who have no checkout.
DOWNLOADS = HERE.parent / "build" / "downloads"
DOWNLOADS.mkdir(parents=True, exist_ok=True)
for example in ("placement_api", "compute_api"):
    with zipfile.ZipFile(DOWNLOADS / f"{example}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((HERE.parent / "examples" / example).glob("*.*")):
            archive.write(file, f"{example}/{file.name}")

project = "cloudcore"
author = project_copyright = "The cloudcore maintainers"
version = release = cloudcore.__version__
language = "en_GB"
extensions = [
    "myst_nb" if NOTEBOOKS else "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "diagrams",
    "python_names",
]
exclude_patterns = ["_*", "**/.ipynb_checkpoints"]
nitpicky = False

# Pages are Markdown as other readers have it, too; a fence of mermaid is drawn when the site is made.
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # pages that begin with an included file
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

# Notebooks are run when the site is made, unless nothing of them has changed.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autosummary_generate = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"cloudcore {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"
