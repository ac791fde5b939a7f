"""Trees of tensors: tensors in (named) tuples, lists and dictionaries, as states, observations and caches are."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def tree_map(function: Callable[..., Any], tree: T, *others: Any) -> T:
    """The same tree with ``function`` of each tensor, and of those at its place in ``others``; all else stays."""
    made: Any = tree
    if isinstance(tree, Tensor):
        made = function(tree, *others)
    elif isinstance(tree, (tuple, list)):
        parts = [tree_map(function, *nodes) for nodes in zip(tree, *others, strict=True)]
        made = type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    elif isinstance(tree, dict):
        made = {key: tree_map(function, node, *(other[key] for other in others)) for key, node in tree.items()}
    return made


def leaves(tree: Any) -> Iterator[Any]:
    """What stands at the ends of a tree, in order."""
    if isinstance(tree, (tuple, list, dict)):
        for node in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(node)
    elif tree is not None:
        yield tree
