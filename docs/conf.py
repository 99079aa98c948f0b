"""The documentation site: `make docs` builds it without a network, and any warning fails the build."""

import importlib.metadata
import logging
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from live import expand  # noqa: E402  # it stands beside this file

import rxtone  # noqa: E402

project = "rxtone"
copyright = "rxtone contributors, Apache-2.0"  # noqa: A001  # Sphinx's name
release = importlib.metadata.version("rxtone")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# An empty glob is no fault, and Sphinx gives its warning no type that `suppress_warnings` could name.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda record: "glob pattern" not in str(record.msg))
nitpicky = True
# Other projects' names would need their inventories from the network; what is not public has no page.
nitpick_ignore_regex = [(r"py:.*", r"(?!rxtone\.\w+$).*")]
default_role = "code"
smartquotes = False  # dashes of options and dots of placeholders stay what is typed

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_allow_digits = False  # a price is no formula
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are stored with their outputs; tests run them

html_theme = "furo"
html_math_renderer = "mathml"  # browsers draw it themselves; MathJax would come from the network
html_title = f"rxtone {release}"
html_copy_source = False
html_show_search_summary = False  # a page opened from a folder may not fetch others to quote them
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


def setup(app):  # noqa: ANN001, ANN201, D103  # Sphinx's hook
    app.connect("source-read", _read)
    app.connect("missing-reference", _public)
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))


def _read(app, name, source):  # noqa: ANN001, ANN202
    source[0] = expand(source[0])
    # Tables that benchmarks write have no heading of their own.
    if name.startswith("benchmarks/") and not re.search(r"^# ", source[0], re.MULTILINE):
        source[0] = f"# {name.rpartition('/')[2]}\n\n{source[0]}"


def _public(app, env, node, content):  # noqa: ANN001, ANN202
    """Link annotations, which name the module that defines a class, to its public name."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if name not in rxtone.__all__:
        return None
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", f"rxtone.{name}", node, content)


def _math(translator, node):  # noqa: ANN001, ANN202
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode
