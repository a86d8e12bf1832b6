"""How Sphinx renders the reference: from the docstrings, strictly, and without a network.

Every name that a docstring or a signature refers to must resolve (nitpicky): to a page of ours, to
torch's, which are linked by their known addresses, or to Python itself. CI turns warnings into
errors.
"""

from __future__ import annotations

import builtins
from importlib.metadata import version as installed
from typing import Any

from docutils import nodes

project = "fusedrnn"
author = "The fusedrnn developers"
version = release = installed(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
nitpicky = True
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

html_theme = "alabaster"
html_theme_options = {"description": "Drop-in fused RNN, LSTM and GRU for PyTorch"}
html_sidebars = {"**": ["about.html", "navigation.html", "localtoc.html", "searchbox.html"]}
html_copy_source = False

TORCH = "https://docs.pytorch.org/docs/stable/"
TORCH_PAGES = {  # the others have a page of their own name
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.nn.modules.module.Module": "generated/torch.nn.Module.html",
}
PYTHON = ("collections.abc.", "typing.", "contextlib.")


def outside(_app: Any, _env: Any, node: Any, content: Any) -> Any:
    """What a name that is none of ours is shown as; None, and with it a warning, if unknown."""
    name = node.get("reftarget", "")
    if hasattr(builtins, name) or name.startswith(PYTHON):
        return content
    if name.startswith("torch."):
        page = TORCH_PAGES.get(name, f"generated/{name}.html")
        return nodes.reference("", "", content, internal=False, refuri=TORCH + page)
    return None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", outside)
