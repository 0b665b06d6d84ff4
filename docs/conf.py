"""The documentation site: `sphinx-build -W -n -b html docs docs/_build`.

It needs `pip install -c constraints.txt -e ".[docs]"`. Pages are Markdown, the reference is made from the docstrings.
`tests/test_docs.py` runs the Python of the pages and composes or parses their commands; a slow test of it runs the
commands of start.md, with short fits.
"""

import ast
import inspect
import textwrap

from sphinx.pycode import ModuleAnalyzer

import lt_lightning

project = "lt_lightning"
author = "the authors of lt_lightning"
copyright = author
version = release = lt_lightning.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"lt_lightning {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

default_role = "literal"  # docstrings write names as Markdown does
add_module_names = False
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
napoleon_use_ivar = True
nitpick_ignore = [
    *(("py:class", name) for name in ("Change", "Density", "Model", "Sparse", "Record", "Path", "Self")),
    *(("py:class", name) for name in ("Row", "MakeTrainer", "Images", "Splits", "SLURMEnvironment")),
    *(("py:class", f"lt_lightning.{name}") for name in ("masks.Density", "changes.Change", "changes.Weight")),
]
nitpick_ignore_regex = [  # other projects' names, which are links to nowhere without their inventories
    (r"py:.*", r"(torch|lightning|collections|pathlib|typing|os|nn|L)\..*"),
    (r"py:.*", r"[A-Z]\w*Error|Any|Callable|Iterator|Iterable|Mapping|Sequence|Tensor|optional|[a-z]+|None"),
]


def as_written(app, what, name, obj, options, signature, returns):
    """The signature as the source has it, with the names of types in place of what they stand for."""
    if name == "lt_lightning.Ticket":
        return "", None  # lottery makes it
    if what != "function":
        return None
    definition = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    return f"({ast.unparse(definition.args)})", ast.unparse(definition.returns) if definition.returns else None


def docstring(app, what, name, obj, options, lines):
    """Types have their docstrings beside them, in the module they come from; examples may be fenced as in Markdown."""
    public = name.removeprefix("lt_lightning.")
    if what == "data" and public in lt_lightning._HOME:
        analyzer = ModuleAnalyzer.for_module(f"lt_lightning.{lt_lightning._HOME[public]}")
        lines[:] = analyzer.find_attr_docs()["", public]
    if what in ("data", "attribute", "property") and ": " in lines[0]:
        lines[:1] = lines[0].replace(": ", ":\n", 1).split("\n")  # napoleon takes what comes before it for a type
    fence = None
    for number, line in enumerate(lines):
        bare = line.strip()
        if bare.startswith("```"):
            fence = len(line) - len(bare) if fence is None else None
            lines[number] = f"{' ' * fence}.. code-block:: {bare[3:]}\n" if fence is not None else ""
        elif fence is not None and bare:
            lines[number] = f"    {line}"
    lines[:] = "\n".join(lines).split("\n")


def setup(app):
    """Register both, before napoleon reads the docstrings."""
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-process-docstring", docstring, priority=400)
