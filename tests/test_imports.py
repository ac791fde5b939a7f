"""Which module may import which: the package is built in rooms, and each imports from those below it alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import toolagent_pl

ROOT = Path(toolagent_pl.__file__).parent
PACKAGE = "toolagent_pl"
# What the modules of a folder may import of the package besides those of the folder itself.
BELOW = {
    "rl": (),
    "training": ("rl",),
    "envs/calculator": ("rl",),
    "envs/tutorial": ("rl", "envs/calculator"),
    "envs/countdown": ("rl",),
    "interop": ("rl", "envs"),
}
ONLY_IN = {"lightning": ("training", "cli"), "jsonargparse": ("cli",)}
MAX_LINES, MAX_ENTRIES = 400, 9


def modules():
    return {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path, lazy=True):
    """Dotted names that a module imports; those in functions and for types only with ``lazy``."""
    tree, found = ast.parse(path.read_text()), set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif lazy or not (is_for_types(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
    return found


def resolved(name, known):
    """The module of the package that a dotted name is or is in."""
    while name and name not in known and f"{name}.__init__" not in known:
        name = name.rpartition(".")[0]
    return name if name in known else f"{name}.__init__"


def room(module):
    """The folder of a module, ``envs/calculator``."""
    return "/".join(module.split(".")[1:-1])


def is_allowed(module, name, known):
    """Whether a module may import a name."""
    home, top = room(module), name.partition(".")[0]
    if top in ONLY_IN:
        return home.partition("/")[0] in ONLY_IN[top]
    rules = [(one, below) for one, below in BELOW.items() if f"{home}/".startswith(f"{one}/")]
    if top != PACKAGE or not rules or name == f"{PACKAGE}.__version__":
        return True
    ((own, below),) = rules
    return any(f"{room(resolved(name, known))}/".startswith(f"{one}/") for one in (own, *below))


def test_a_room_imports_from_those_below_it_alone():
    known = modules()
    wrong = [
        f"{module} imports {name}"
        for module, path in known.items()
        for name in sorted(imports(path))
        if not is_allowed(module, name, known)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {
        module: {resolved(name, known) for name in imports(path, lazy=False) if name.startswith(f"{PACKAGE}.")}
        - {module}
        for module, path in known.items()
    }
    list(TopologicalSorter(graph).static_order())  # an error names the circle


def test_modules_and_the_package_are_small():
    long = {module: n for module, path in modules().items() if (n := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries) <= MAX_ENTRIES, sorted(entries)
