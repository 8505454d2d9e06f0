"""A step over several passes is the step of the whole batch."""

import pytest
import torch

from tests.venhancer.networks import clip, tiny_pipeline
from toolkit.runs.device import make_accelerator
from toolkit.runs.passes import accumulate
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.train import augment
from toolkit.venhancer.train.objective import Denoising


@pytest.mark.parametrize(("diffuses", "controlled"), [("latents", True), ("latents", False), ("residuals", True)])
def test_gradients_of_passes_of_two_and_a_smaller_last_one_are_those_of_the_whole(diffuses, controlled):
    pipeline, count = tiny_pipeline(diffuses=diffuses), 3
    clips = torch.stack([torch.from_numpy(clip(5, 8, 12, seed=seed)).permute(0, 3, 1, 2) for seed in range(count)])
    level = torch.tensor([0, 40, 300])
    batch = augment.degrade(clips, 2, torch.linspace(1, 4, count), level, pipeline.fill)
    text = pipeline.encode_prompt("", "", guided=False).expand(count, -1, -1)
    objective = Denoising(pipeline, controlled)
    objective.eval()  # dropout is drawn pass by pass
    parameters = list(objective.requires_grad_(True).parameters())
    torch.manual_seed(0)
    drawn, found = objective.draw(batch, count), []
    for micro_batch_size in (None, 2):
        objective.zero_grad()
        terms = accumulate(objective, (batch, text, drawn), micro_batch_size, make_accelerator(EnhanceVideo()))
        gradients = torch.cat([one.grad.flatten() for one in parameters if one.grad is not None])
        found.append((terms["loss"].item(), gradients))
    (loss, whole), (other, parts) = found
    assert other == pytest.approx(loss, rel=1e-5) and (parts - whole).norm() < 1e-4 * whole.norm() > 0
