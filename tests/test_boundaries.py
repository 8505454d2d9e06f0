"""What is just refused, and beside it what is just allowed: the checks across the fields of the five configs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.composed import composed
from toolkit.data.config import Encode
from toolkit.disco.config import Latents, Loss, PriorConfig, Sampling
from toolkit.disco.config import Measure as MeasureDisco
from toolkit.errors import UserError
from toolkit.icg.config import Measure as MeasureICG
from toolkit.ivideogpt.config import Measure as MeasureWorld
from toolkit.schema import check
from toolkit.stacking.config import Growth, Optim

SLOTS = Latents(width=12, num_heads=4, num_latents=6, num_groups=3)
ALLOWED = [
    Latents(width=12, num_heads=6),
    SLOTS,
    PriorConfig(width=12, num_heads=3),
    Loss(p_std=1e-6),
    Sampling(sigma_min=0.1, sigma_max=0.2),
    Sampling(cfg_interval=[0.1, 0.2]),
    Sampling(null_model="other", cfg_scale=-0.5),
    Sampling(null_model="other", latents_off_below=0.1),
    Sampling(null_model="other", cfg_scale=1.0, latents_off_below=0.1),
    Sampling(latents="fixed", fixed=[0]),
    MeasureDisco(names=["loss", "cost"], evaluations=[1], sigmas=[0.1]),
    MeasureICG(curve=[1.0, 2.0]),
    MeasureICG(curve=[]),
    MeasureWorld(names=["actions"]),
    Growth(factor=2.0),
    Growth(num_layers=8),
    Growth(operator="interleave", factor=2.0),
    Growth(operator="zero", direction="width", factor=2.0, scale_eps=not Growth.scale_eps),
    Optim(betas=[0.9, 0.95], scratch_lrs=[1e-3, 2e-3]),
    Encode(codec="hevc", pix_fmt="yuv444p10le"),
    Encode(codec="png", pix_fmt="rgb48"),
]
REFUSED = [
    (replace(SLOTS, num_heads=5), "latents.num_heads=5: must divide latents.width=12"),
    (replace(SLOTS, num_groups=4), "latents.num_groups=4: must divide latents.num_latents=6"),
    (PriorConfig(width=12, num_heads=5), "prior.num_heads=5: must divide prior.width=12"),
    (Loss(p_std=0.0), "p_std=0.0: must be greater than 0"),
    (Sampling(sigma_min=0.2, sigma_max=0.2), "sampling.sigma_min=0.2: must be less than sampling.sigma_max=0.2"),
    (Sampling(cfg_interval=[0.2, 0.2]), "sampling.cfg_interval=[0.2, 0.2]: must be two sigmas"),
    (Sampling(cfg_interval=[0.1, 0.2, 0.3]), "sampling.cfg_interval=[0.1, 0.2, 0.3]: must be two sigmas"),
    (Sampling(null_model="other"), "sampling.null_model=other: stands for the null branch, which nothing asks for"),
    (Sampling(latents="fixed"), "sampling.fixed: must be given with sampling.latents=fixed"),
    (MeasureDisco(names=["los"]), "measure.names=los: did you mean 'loss'"),
    (MeasureDisco(evaluations=[]), "measure.evaluations=[]: must have at least one value"),
    (MeasureDisco(sigmas=[]), "measure.sigmas=[]: must have at least one value"),
    (MeasureICG(curve=[1.0, 2.0, 1.0]), "measure.curve=[1.0, 2.0, 1.0]: a scale stands there twice"),
    (MeasureWorld(names=["action"]), "measure.names=action: did you mean 'actions'"),
    (Growth(), "factor: give either factor=... or num_layers=..."),
    (Growth(factor=2.0, num_layers=8), "factor: give either factor=... or num_layers=..."),
    (Growth(operator="zero", direction="width", num_layers=8), "num_layers: belongs to direction=depth"),
    (Growth(factor=2.0, scale_eps=not Growth.scale_eps), "belongs to operator=zero direction=width"),
    (Optim(betas=[0.9]), "optim.betas=[0.9]: must be two numbers"),
    (Optim(scratch_lrs=[1e-3, 2e-3, 1e-3]), "optim.scratch_lrs=[0.001, 0.002, 0.001]: holds a rate twice"),
    (Encode(codec="h264", pix_fmt="rgb48"), "encode.pix_fmt=rgb48: encode.codec=h264 takes auto"),
]


@pytest.mark.parametrize("config", ALLOWED, ids=lambda config: repr(config)[:40])
def test_what_is_just_allowed(config):
    check(config)


@pytest.mark.parametrize(("config", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_what_is_just_refused_is_named_with_its_value(config, said):
    with pytest.raises(UserError) as error:
        check(config)
    assert said in str(error.value)


WHOLE = [  # a command's words, what is allowed beside them, what is not
    ("train-disco model=m", "stage=sample", "stage=prior", "model=m: its parts are trained"),
    (
        "train-disco init=m",
        "baseline=same_width",
        "baseline=matched",
        "with init it is the same network",
    ),
    ("train-disco baseline=none", "stage=prior", "stage=baseline", "stage=baseline: baseline=none has none to train"),
    (
        "train-disco stage=prior",
        "latents.kind=discrete",
        "latents.kind=none",
        "has no latents to model",
    ),
    (
        "train-disco sampling.null_model=baseline sampling.cfg_scale=1",
        "baseline=same_width",
        "baseline=none",
        "sampling.null_model=baseline: baseline=none has none",
    ),
    (
        "train-disco checkpoint_every_steps=50",
        "keep_every_steps=100",
        "keep_every_steps=75",
        "keep_every_steps=75: must be a multiple of checkpoint_every_steps=50",
    ),
    ("train-ivideogpt num_frames=9 context_length=2", "kept_frames=6", "kept_frames=7", "kept_frames=7: must be fewer"),
    (
        "train-ivideogpt num_frames=9 optim.tokenizer.num_future=1",
        "context_length=8",
        "context_length=9",
        "must be more than context_length=9",
    ),
    ("grow-llm", "arms=[grown,scratch]", "arms=[grown,grown]", "arms=['grown', 'grown']: names one twice"),
    (
        "grow-llm optim.after_growth=tile operator=zero factor=2",
        "direction=depth",
        "direction=width",
        "optim.after_growth=tile: moments follow their tensors in depth only",
    ),
]


@pytest.mark.parametrize(("words", "allowed", "refused", "said"), WHOLE, ids=[said[:40] for *_, said in WHOLE])
def test_what_must_fit_together_in_a_command(words, allowed, refused, said):
    command, *words = words.split()
    check(composed(command, *words, allowed))
    with pytest.raises(UserError) as error:
        check(composed(command, *words, refused))
    assert said in str(error.value)
