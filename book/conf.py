"""Sphinx's settings for the book: MyST-NB reads executed notebooks, MathJax and DataTables come with the site."""

import re

project = html_title = "nullpaper"
author = ""
extensions = [
    *("myst_nb", "sphinx.ext.mathjax", "fulltext"),
    *("sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"),
]
exclude_patterns = ["_static", "_templates", "_extra", "notebooks", "results", "figures"]
templates_path = ["_templates"]
html_extra_path = ["_extra"]
autosummary_generate = False
autodoc_member_order = "bysource"
add_module_names = False
maximum_signature_line_length = 80
default_role = "py:obj"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["dt_bundle.css", "book.css"]
html_js_files = ["book.js"]
html_copy_source = html_show_sphinx = html_show_copyright = False
html_use_index = html_domain_indices = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "verdicts": []},
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}
mathjax_path = "mathjax.js"
mathjax3_config = {
    "options": {"enableMenu": False, "ignoreHtmlClass": ".*", "processHtmlClass": "math"},
    "svg": {"fontCache": "local"},  # SVG needs no font files
    "tex": {"packages": {"[-]": ["noundefined"]}},
}
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
myst_update_mathjax = False
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"


def setup(app):
    def escape(_app, _what, _name, _object, _options, lines):
        """A norm |v| in a docstring is no substitution of reStructuredText."""
        text = re.sub(r"(``.*?``|`[^`]*`)|\|", lambda found: found[1] or r"\|", "\n".join(lines))
        lines[:] = text.split("\n")

    app.connect("autodoc-process-docstring", escape)
