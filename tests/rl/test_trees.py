import torch

from toolagent_pl.rl.env import VectorObservation
from toolagent_pl.rl.trees import leaves, tree_map


def test_all_tensors_of_a_tree_are_mapped_in_place():
    one, two = torch.ones(2), torch.zeros(3)
    tree = {"seen": VectorObservation(one), "kept": [two, None, 4], "pair": (one, two)}
    mapped = tree_map(torch.add, tree, tree)
    assert isinstance(mapped["seen"], VectorObservation)
    assert torch.equal(mapped["seen"].vector, 2 * one)
    assert mapped["kept"][1:] == [None, 4]
    assert isinstance(mapped["pair"], tuple)
    assert [len(leaf) for leaf in leaves(mapped) if isinstance(leaf, torch.Tensor)] == [2, 3, 2, 3]
