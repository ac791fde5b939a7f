"""Checkpoint files: they come back bit for bit, and a damaged one is refused or is the same."""

import math
import struct
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toolagent_pl.training.checkpoints import AtomicCheckpointIO

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    """Of any bits, so with every NaN there is; some are views with gaps."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype == torch.bool:
        raw = bytes(byte % 2 for byte in raw)
    made = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.zeros(0, dtype=dtype)
    made = made.view(shape)
    return made.t() if made.ndim == 2 and draw(st.booleans()) else made


nans = st.integers(1, 2**52 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000000 | bits))[0])
numbers = st.integers() | st.floats() | nans | st.booleans()
plain = st.none() | numbers | st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.integers(0, 100)
trees = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)
checkpoints = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), trees, max_size=5)


def bits(tree):
    """A tree as something that is equal only where every bit and every type is."""
    if isinstance(tree, torch.Tensor):
        contiguous = tree.contiguous().view(-1)
        content = contiguous.view(torch.uint8).numpy().tobytes() if tree.numel() else b""
        return "tensor", str(tree.dtype), tuple(tree.shape), content
    if isinstance(tree, dict):
        return type(tree).__name__, [(bits(key), bits(value)) for key, value in tree.items()]
    if isinstance(tree, list | tuple):
        return type(tree).__name__, [bits(value) for value in tree]
    if isinstance(tree, float):
        return "float", struct.pack("<d", tree)
    return type(tree).__name__, tree


@pytest.fixture(scope="module")
def file():
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "some.ckpt"


@given(checkpoint=checkpoints)
def test_what_is_written_is_read_bit_for_bit(file, checkpoint):
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    assert bits(AtomicCheckpointIO().load_checkpoint(file)) == bits(checkpoint)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


damage = st.floats(0, 1, exclude_max=True)


@settings(max_examples=150)
@given(checkpoint=checkpoints, where=damage, flipped=st.just(0) | st.integers(1, 255), in_a_tensor=st.booleans())
def test_a_damaged_file_is_refused_or_its_damage_does_not_matter(file, checkpoint, where, flipped, in_a_tensor):
    """Cut there, or a byte flipped there. In a tensor it always matters."""
    checkpoint["weights"] = torch.randn(500)
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    changed, content = bytearray(file.read_bytes()), checkpoint["weights"].numpy().tobytes()
    assume(changed.count(content) == 1)
    if in_a_tensor and flipped:
        changed[changed.index(content) + int(where * len(content))] ^= flipped
    elif flipped:
        changed[int(where * len(changed))] ^= flipped
    else:
        del changed[int(where * len(changed)) :]
    file.write_bytes(changed)
    try:
        found = bits(AtomicCheckpointIO().load_checkpoint(file))
    except (ValueError, OSError):  # where the damage leads beyond the file, the system says so
        return
    assert flipped
    assert not in_a_tensor
    assert found == bits(checkpoint)
