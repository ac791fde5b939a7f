"""Settings of the pages: sphinx-build -W -b html docs docs/_build/html."""

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

from toolagent_pl import __version__

project = "toolagent_pl"
author = "the maintainers of toolagent_pl"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {release}"

# Pages whose head says `file_format: mystnb` are notebooks: building runs them, each in an empty directory.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds for a cell; training takes a minute where nothing else runs
nb_merge_streams = True
suppress_warnings = ["misc.highlighting_failure"]  # cells that are commands of a shell
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `!python` is this one
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("COLUMNS", "100")

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    """Leave out what Python says of the fields of named tuples: the docstrings of their classes say more."""
    app.connect(
        "autodoc-skip-member",
        lambda _app, _what, _name, member, skip, _options: (
            skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
        ),
    )
