"""Sphinx's settings for the book: MyST-NB reads executed notebooks, MathJax and DataTables come with the site."""

project = html_title = "nullpaper"
author = ""
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["_static"]
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
