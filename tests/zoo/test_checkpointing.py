"""Activation checkpointing leaves every gradient as it was, dropout included, and takes less memory."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from tests.ivideogpt import tiny
from tests.stacking.models import make_model, token_ids
from toolkit.errors import UserError
from toolkit.ivideogpt.clips import arrange
from toolkit.ivideogpt.train.transformer import TransformerObjective, tokenise
from toolkit.stacking.pretrain import cpu_blocks
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.zoo.checkpointing import checkpoint_activations
from toolkit.zoo.edm.mlp import MLPDenoiser
from toolkit.zoo.edm.transformer import Transformer
from toolkit.zoo.edm.unet import ADMUNet, SongUNet
from toolkit.zoo.edm.uvit import UViT

UNET = {"image_size": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "dropout": 0.3}
LATENTS = {"num_latents": 2, "codebook_size": 3, "latent_width": 8, "latent_layers": 1, "latent_heads": 2}


def shaken(network):
    """Random weights where layers start at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.train()


def denoiser(network, **keys):
    made = shaken(network(**UNET, **keys))
    x, sigma = torch.randn(2, *made.shape), torch.tensor([0.3, 4.0])
    latents = torch.tensor([[0, 2], [1, 1]]) if made.num_latents else None
    return made, lambda: made(x, sigma, latents=latents).square().mean()


def world():
    made, clips = tiny.world(), tiny.clips()
    network = made.transformer.requires_grad_(True).train()
    network.llm.config.attention_dropout = 0.3
    objective = TransformerObjective(network, made.tokenizer, tiny.config(), clips.statistics)
    batch = tokenise(made.tokenizer, arrange(clips.train.sample(2, 0, "x"), tiny.config()), torch.device("cpu"))
    return network, lambda: objective(batch)["loss"]


def llama():
    network, ids = shaken(make_model()), token_ids(2, 13, 0)
    return network, lambda: LanguageModelLoss(network)(ids[:, :-1], ids[:, 1:])


CASES = {
    "adm": lambda: denoiser(ADMUNet, attn_resolutions=(8, 4), channels_per_head=8, **LATENTS),
    "song": lambda: denoiser(SongUNet),
    "uvit": lambda: denoiser(UViT, depth=3, channels_per_head=8, **LATENTS),
    "world": world,
    "llama": llama,
    "llama of transformers": llama,
}


def gradients(network, loss):
    network.zero_grad()
    torch.manual_seed(0)
    loss().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_to_the_bit(case, monkeypatch):
    if case == "llama of transformers":
        monkeypatch.setattr(cpu_blocks, "usable", lambda *_: False)
    torch.manual_seed(0)
    network, loss = CASES[case]()
    plain = gradients(network, loss)
    checkpoint_activations(network)
    again = gradients(network, loss)
    assert len(plain) == len(again) and all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
    assert sum(float(one.abs().sum()) for one in plain) > 0


def peak_bytes(loss):
    """The most memory that tensors made by a forward and backward pass take at a time."""
    tracker = MemTracker()
    with tracker:
        loss().backward()
    return sum(sizes["Total"] for sizes in tracker.get_tracker_snapshot("peak").values())


def test_a_deep_narrow_network_takes_less_memory():
    network, tokens = Transformer(width=8, depth=12, num_heads=2), torch.randn(64, 16, 8)
    plain = peak_bytes(lambda: network(tokens).square().mean())
    checkpoint_activations(network)
    assert 0 < peak_bytes(lambda: network(tokens).square().mean()) < 0.4 * plain


def test_what_has_no_blocks_is_refused():
    with pytest.raises(UserError, match=r"optim\.gradient_checkpointing=true: MLPDenoiser has no blocks"):
        checkpoint_activations(MLPDenoiser((2,), 8, 2))
