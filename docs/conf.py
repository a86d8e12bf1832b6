"""How Sphinx renders the pages and the docstrings: strictly, and without a network.

Every name in a docstring or signature must resolve (nitpicky): to one of our pages, to one of
torch's, whose addresses are known, or to Python itself. Links to files of the repository become
links to its address on the web. Formulas become MathML, which browsers draw themselves. CI turns
warnings into errors.
"""

from __future__ import annotations

import builtins
import re
from importlib.metadata import metadata
from importlib.metadata import version as installed
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

project = "fusedrnn"
author = "The fusedrnn developers"
version = release = installed(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
nitpicky = True
nitpick_ignore = [  # types without a page: the model, the sequences given, forward's keywords
    ("py:class", "fusedrnn.convert.Model"),
    ("py:class", "fusedrnn.freeze.Model"),
    ("py:class", "fusedrnn.frozen._Frozen"),
    ("py:class", "fusedrnn._ops.stack.Sequences"),
    ("py:class", "Keywords"),
]
show_warning_types = True

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "returns_style")]
napoleon_use_param = False  # one entry may name several arguments: "device, dtype: ..."
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"fusedrnn {version}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["math.css"]
html_math_renderer = "mathml"
toc_object_entries_show_parents = "hide"

URLS = dict(entry.split(", ", 1) for entry in metadata(project).get_all("Project-URL") or ())
SOURCES = URLS["Source"] + "/blob/main"

TORCH = "https://docs.pytorch.org/docs/stable/"
TORCH_PAGES = {  # the others have a page of their own name
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.nn.modules.module.Module": "generated/torch.nn.Module.html",
}
PYTHON = ("collections.abc.", "typing.", "contextlib.", "os.", "pathlib.")


def outside(_app: Any, _env: Any, node: Any, content: Any) -> Any:
    """How to show a name that is not ours. None if it is unknown, which makes Sphinx warn."""
    name = node.get("reftarget", "")
    if hasattr(builtins, name) or name.startswith(PYTHON):
        return content
    if name.startswith("torch."):
        page = TORCH_PAGES.get(name, f"generated/{name}.html")
        return nodes.reference("", "", content, internal=False, refuri=TORCH + page)
    return None


def of_repository(_app: Any, _name: str, source: list[str]) -> None:
    """Point links to other files of the repository at their address on the web; not images."""
    source[0] = re.sub(r"(?<!!)(\[[^\]]*\]\()\.\./", rf"\1{SOURCES}/", source[0])


def mathml(self: Any, node: Any) -> None:
    """A formula as MathML, by docutils."""
    block = isinstance(node, nodes.math_block)
    drawn = latex2mathml.tex2mathml(node.astext(), as_block=block)
    self.body.append(f"<div class='math'>{drawn}</div>" if block else drawn)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", outside)
    app.connect("source-read", of_repository)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
