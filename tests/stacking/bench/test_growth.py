"""The contenders of ``toolkit bench stacking measure=growth`` do the same work; no time is tested."""

import pytest
import torch

from tests.stacking.checkpoints.test_open import load_strictly
from toolkit.stacking.bench import Options
from toolkit.stacking.bench.growth import contenders


def test_contenders_write_the_same_checkpoint(tmp_path):
    options = Options(source_layers=2, hidden_size=64, factor=3, folder=str(tmp_path))
    written, states = {}, {}
    for name, make in contenders(options).items():
        written[name] = make().tasks["grow"]()
        (folder,) = tmp_path.glob("*/out")
        states[name] = load_strictly(folder).state_dict()
    assert abs(written["ours"] - written["transformers"]) < 0.01 * written["ours"]
    assert written["ours"] == pytest.approx(written["copy"], rel=1e-4)  # growth.json tells the time it took
    for key, tensor in states["ours"].items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, states["copy"][key])
        assert torch.equal(tensor, states["transformers"][key])
    assert states["ours"]["model.layers.5.mlp.up_proj.weight"].abs().sum() > 0
    assert states["zero"]["model.layers.5.mlp.down_proj.weight"].abs().sum() == 0
    assert states["width"]["model.norm.weight"].shape == (128,)
