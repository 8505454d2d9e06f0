"""A step over several passes is the step of the whole batch: both networks, the discriminator and the codebooks."""

import json

import pytest

from tests.ivideogpt import tiny
from toolkit.ivideogpt.train.tokenizer import train_tokenizer
from toolkit.ivideogpt.train.transformer import train_transformer
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run


def curves(folder, config, stage, train):
    run = Run(folder, config)
    run.open([])
    with run.stage(stage):
        train(run, config, make_accelerator(config))
    run.close("done")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("stage", "step")} for row in rows]


def compare(folder, make_config, stage, train):
    """The curves with all clips at once and in passes of two, the last of one."""
    whole, parts = (curves(folder / str(micro), make_config(micro), stage, train) for micro in (None, 2))
    assert len(whole) == len(parts) == 2
    for mine, other in zip(whole, parts, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    return whole


def test_the_transformer(tmp_path):
    def make_config(micro):
        config = tiny.config(log_every_steps=1)
        optim = config.optim.transformer
        optim.num_steps, optim.batch_size, optim.lr, optim.micro_batch_size = 2, 5, 1e-2, micro
        optim.warmup_steps, optim.first_frame_weight = 0, 3.0
        return config

    def train(run, config, accelerator):
        world = tiny.world()
        train_transformer(
            world.transformer.requires_grad_(True), world.tokenizer, run, config, tiny.clips(), accelerator
        )

    assert "reward" in compare(tmp_path, make_config, "transformer", train)[0]


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_tokenizer_and_its_discriminator(tmp_path, codebook):
    """Codes begin with step 1 (from the data), the discriminator at once."""

    def make_config(micro):
        config = tiny.config(log_every_steps=1)
        config.tokenizer.dropout = 0.0
        optim, loss = config.optim.tokenizer, config.tokenizer_loss
        optim.num_steps, optim.batch_size, optim.lr, optim.micro_batch_size, optim.warmup_steps = 2, 5, 1e-3, micro, 0
        config.codebook.warmup_steps, config.codebook.kind = 1, codebook
        config.codebook.restart_below = 0.5 if codebook == "ema" else None
        loss.perceptual, loss.gan, loss.gan_start_step, loss.gan_depth, loss.gan_hidden = "gradients", True, 0, 2, 8
        return config

    def train(run, config, accelerator):
        network = tiny.tokenizer()
        for block in network.modules():
            if hasattr(block, "resid_dropout"):
                block.att.dropout = block.resid_dropout.p = 0.0
        train_tokenizer(network, run, config, tiny.clips(), accelerator)

    found = compare(tmp_path, make_config, "tokenizer", train)
    assert {"adversarial", "discriminator", "codebook", "perceptual"} <= set(found[-1])
