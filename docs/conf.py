"""Configures the documentation site, which `make docs` builds with Sphinx, MyST and furo.

The pages are plain Markdown, so that they can also be read in the repository. While Sphinx reads a page,
`site_source.py` adds navigation and the titles of linked pages, and `api_pages.py` adds the reference of the public
names. Building the site downloads nothing.
"""

import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from api_pages import with_reference  # noqa: E402  # found only after the change of sys.path above
from site_source import for_site  # noqa: E402

from trl_rec.version import __version__  # noqa: E402


project = "trl-rec"
author = "the authors of trl-rec"
version = release = __version__

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_dmath_allow_digits = False  # a text between two prices in dollars is not a formula
html_math_renderer = "mathml"  # registered below
myst_heading_anchors = 4
exclude_patterns = ["device.json", "studies", "__pycache__"]
highlight_language = "none"  # indented blocks are formulas and output, not programs
nitpicky = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"trl-rec {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d5fa8", "color-brand-content": "#1d5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}


def setup(app):
    """Registers a function that changes the text of pages, and a renderer of formulas. Sphinx calls `setup`."""

    def change(app, docname, source):
        source[0] = with_reference(for_site(docname, source[0]))

    def writer(display):
        """Returns two values, as Sphinx expects: a function that writes a formula, and None.

        The function writes the formula as MathML, which browsers show without a script. The second value could be a
        function that writes the end of the formula, but nothing is left to write there.
        """

        def write(translator, node):
            formula = convert(node.astext(), display=display)
            is_block = display == "block"
            translator.body.append(f'<div class="formula">{formula}</div>' if is_block else formula)
            raise SkipNode

        return write, None

    app.connect("source-read", change)
    app.add_html_math_renderer("mathml", writer("inline"), writer("block"))
    return {"parallel_read_safe": True}
