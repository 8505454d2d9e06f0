"""The packed file: small, whole, and nearly the same model."""

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt.control.packed import pack, unpack
from toolkit.ivideogpt.rollout import imagine


def test_a_packed_model_is_a_quarter_of_the_size_and_nearly_the_same(tmp_path):
    world = tiny.world()
    path = pack(world, tmp_path / "world.safetensors")
    found = unpack(path)
    assert found.config == world.config and found.spec == world.spec
    for part in ("tokenizer", "transformer"):
        own, other = getattr(world, part).state_dict(), getattr(found, part).state_dict()
        assert own.keys() == other.keys()
        for name, tensor in own.items():
            assert (tensor - other[name]).abs().max() <= 0.005 * tensor.abs().max() + 1e-3, name
    plain = sum(
        tensor.numel() * 4
        for part in ("tokenizer", "transformer")
        for tensor in getattr(world, part).state_dict().values()
    )
    assert path.stat().st_size < 0.6 * plain  # scales and headers count in so tiny a model


def test_packing_what_was_unpacked_changes_nothing(tmp_path):
    first = pack(tiny.world(), tmp_path / "a.safetensors")
    again = pack(unpack(first), tmp_path / "b.safetensors")
    worlds = [unpack(path) for path in (first, again)]
    context = torch.rand(2, 1, 3, 16, 16)
    frames = [imagine(world, context, torch.zeros(2, 2, 2), 2, [0, 1], None)[0] for world in worlds]
    assert np.abs(frames[0] - frames[1]).max() < 0.05


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(UserError, match="not a packed world model"):
        unpack(tmp_path / "x")
    with pytest.raises(UserError, match="not a packed world model"):
        unpack(tmp_path / "absent")
