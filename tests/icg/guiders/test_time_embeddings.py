"""Where the time step is embedded, and the noise that is added there (invariants U10 and U12)."""

import subprocess
import sys

import diffusers
import pytest
import torch
from torch import nn

from tests.icg import tiny
from toolkit.errors import UserError
from toolkit.icg import TimeStepGuidance, find_time_embeddings, guided
from toolkit.icg.guiders import time_embeddings
from toolkit.icg.guiders.hooks import Attached
from toolkit.zoo.edm.mlp import MLPDenoiser
from toolkit.zoo.edm.unet import ADMUNet


def names(*args, **kwargs):
    return [name for name, _ in find_time_embeddings(*args, **kwargs)]


def test_finding_them_loads_no_network_of_diffusers():
    code = (
        "import sys, toolkit.icg.guiders.time_embeddings as found\n"
        "from toolkit.zoo.edm.mlp import MLPDenoiser\n"
        "assert found.find_time_embeddings(MLPDenoiser())\n"
        "assert not {'diffusers.models.unets', 'diffusers.models.transformers', 'scipy.stats'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_right_module_of_each_family():
    assert names(tiny.network("ddpm")) == names(tiny.network("sdxl")) == ["time_embedding"]
    assert names(tiny.network("sd3")) == names(tiny.network("flux")) == ["time_text_embed.timestep_embedder"]
    assert names(tiny.network("sana")) == ["time_embed.emb.timestep_embedder"]
    assert names(tiny.pixart()) == ["adaln_single.emb.timestep_embedder"]
    assert names(tiny.network("dit")) == [f"transformer_blocks.{i}.norm1.emb.timestep_embedder" for i in range(3)]
    assert names(tiny.network("dit"), max_layers=2) == names(tiny.network("dit"))[:2]
    assert names(MLPDenoiser()) == ["embed_noise"]
    small = {"image_size": 8, "model_channels": 16, "channel_mult": (1,), "num_blocks": 1}
    assert names(ADMUNet(**small)) == ["map_out"]


@pytest.mark.parametrize(
    ("cls", "config", "expected"),
    [
        (
            "WanTransformer3DModel",
            {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 12, "ffn_dim": 8},
            "condition_embedder.time_embedder",
        ),
        (
            "QwenImageTransformer2DModel",
            {"num_layers": 1, "num_attention_heads": 1},
            "time_text_embed.timestep_embedder",
        ),
        ("CogVideoXTransformer3DModel", {"num_layers": 1, "num_attention_heads": 1}, "time_embedding"),
        (
            "HunyuanVideoTransformer3DModel",
            {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
            "time_text_embed.timestep_embedder",
        ),
        ("LTXVideoTransformer3DModel", {"num_layers": 1}, "time_embed.emb.timestep_embedder"),
        ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, "time_step_proj"),
        ("Lumina2Transformer2DModel", {"num_layers": 1}, "time_caption_embed.timestep_embedder"),
        ("ControlNetModel", {}, "time_embedding"),
        ("UNet1DModel", {"extra_in_channels": 16, "use_timestep_embedding": False}, "time_proj"),
    ],
)
def test_families_built_on_the_meta_device(cls, config, expected):
    with torch.device("meta"):
        model = getattr(diffusers, cls)(**config)
    assert names(model) == [expected]


def test_noise_has_the_right_size_and_is_shared_by_all_layers():
    """s (t / 1000)^alpha std(t_emb) within 2%, the same vector in every block, another at every step."""
    model = tiny.build(
        diffusers.DiTTransformer2DModel,
        num_attention_heads=8,
        attention_head_dim=64,
        num_layers=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=12,
        sample_size=4,
    )
    clean, noisy = record(model, TimeStepGuidance(2.0, noise_scale=1.5, alpha=0.5), [250.0, 250.0])
    assert len(clean[0]) == len(noisy[0]) == 3, "two blocks, and block 0 again for the output layer"
    units = [(after - before) / before.std(-1, keepdim=True) for before, after in zip(clean[0], noisy[0], strict=True)]
    assert all(torch.allclose(one, units[0], atol=1e-4) for one in units)
    assert float(units[0].std()) == pytest.approx(1.5 * 0.25**0.5, rel=0.02)
    assert not torch.allclose(units[0][0], units[0][1], atol=1e-3), "one noise per sample"
    assert not torch.allclose(noisy[1][0], noisy[0][0], atol=1e-3), "another at the next step"


def test_layer_limit_leaves_the_output_layer_clean():
    model = tiny.network("dit")
    clean, noisy = record(model, TimeStepGuidance(2.0, max_layers=2), [500.0])
    changed = [not torch.equal(*pair) for pair in zip(clean[0], noisy[0], strict=True)]
    assert changed == [True, True, False], "blocks 0 and 1, but not block 0 again for the output layer"
    clean, noisy = record(model, TimeStepGuidance(2.0, max_layers=3), [500.0])
    assert len(noisy[0]) == 4 and not any(torch.equal(*pair) for pair in zip(clean[0], noisy[0], strict=True))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", ["ddpm", "stable_diffusion"])
def test_the_first_blocks_of_a_unets_encoder_and_decoder_see_noise(kind, batched):
    """In the resnets' own arguments: with and without the noise, sample by sample, first blocks and others."""
    model, seen = tiny.network(kind), {}

    def keep(name):
        return lambda module, args, kwargs, output: seen.setdefault(name, []).append(kwargs.get("temb", *args[1:2]))

    blocks = {name: one for name, one in model.named_modules() if type(one).__name__ == "ResnetBlock2D"}
    guider = TimeStepGuidance(2.0, alpha=0.0, max_layers=1)
    pipe = getattr(tiny, kind)()
    with guided(pipe, guider, batched=batched):
        # the hooks see what the blocks are given after those of the guider
        handles = [one.register_forward_hook(keep(name), with_kwargs=True) for name, one in blocks.items()]
        tiny.sample(kind, num_inference_steps=1)
    for handle in handles:
        handle.remove()
    branches = {name: torch.cat(rows).unflatten(0, (2, 2)) for name, rows in seen.items()}
    noisy = [name for name, (clean, weak) in branches.items() if not torch.equal(clean, weak)]
    assert noisy == ["down_blocks.0.resnets.0", "up_blocks.0.resnets.0"]
    noises = [branches[name][1] - branches[name][0] for name in noisy]
    torch.testing.assert_close(*noises)
    assert not torch.allclose(noises[0][0], noises[0][1])
    assert not any(one._forward_pre_hooks for one in blocks.values())


def record(model, guider, times):
    """Outputs of the time embeddings at every call: of the clean passes, and of the noisy ones."""
    x, labels = torch.randn(64, 4, 4, 4), torch.zeros(64, dtype=torch.long)
    clean, noisy = [], []
    for step, time in enumerate(times):
        guider.set_state(step, 10, time)
        states = guider.prepare_inputs({"class_labels": labels})
        for _ in states:
            guider.prepare_models(model)
            outputs = []
            found = find_time_embeddings(model, max_layers=guider.config.max_layers)
            handles = [part.register_forward_hook(lambda *a, o=outputs: o.append(a[2])) for _, part in found]
            with torch.no_grad():
                model(x, timestep=torch.full((64,), time), class_labels=labels)
            guider.cleanup_models(model)
            for handle in handles:
                handle.remove()
            (clean if len(clean) == len(noisy) else noisy).append(outputs)
    return clean, noisy


def test_unknown_networks_name_their_candidates():
    class Odd(nn.Module):
        def __init__(self, *attributes):
            super().__init__()
            for name in attributes:
                setattr(self, name, diffusers.models.embeddings.TimestepEmbedding(4, 4))

    with pytest.raises(UserError, match=r"no time embedding found in Odd; .* candidates: clock_mlp, size_mlp"):
        names(Odd("clock_mlp", "size_mlp"))
    with pytest.raises(UserError, match=r"several .* candidates: time_embedding, t_embedder"):
        names(Odd("time_embedding", "t_embedder"))
    assert names(Odd("clock_mlp", "size_mlp"), ["clock_*"]) == ["clock_mlp"]
    with pytest.raises(UserError, match=r"no module 'clock_mpl' .* did you mean 'clock_mlp'"):
        names(Odd("clock_mlp"), ["clock_mpl"])
    with pytest.raises(UserError, match="has one time embedding"):
        names(tiny.network("sd3"), max_layers=2)
    with pytest.raises(UserError, match="candidates: none"):
        names(nn.Linear(2, 2))


def test_hooks_come_off_when_the_network_fails():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2))
    guider = TimeStepGuidance(2.0, time_embedding_modules=["0"])
    guider.set_state(0, 1, 500)
    guider.prepare_inputs({})
    guider._count_prepared = 1
    guider.prepare_models(model)
    assert model[0]._forward_hooks and isinstance(guider.attached, Attached)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 2))
    assert not model[0]._forward_hooks and not model._forward_hooks


def test_a_network_is_searched_once_a_run(monkeypatch):
    """Also where experts take turns; the next run searches again, as modules may be others by then."""
    searched = []
    find = time_embeddings.find_time_embeddings
    monkeypatch.setattr(time_embeddings, "find_time_embeddings", lambda *a: searched.append(a[0]) or find(*a))
    experts, guider = [tiny.network("dit"), tiny.network("dit")], TimeStepGuidance()
    for run in (1, 2):
        for step in range(4):
            guider.set_state(step, 4, 900 - 200 * step)
            for state in guider.prepare_inputs({"class_labels": torch.zeros(2, dtype=torch.long)}):
                guider.prepare_models(experts[step % 2])
                guider.cleanup_models(experts[step % 2])
                state.noise_pred = torch.zeros(2, 4, 4, 4)
        assert [searched.count(one) for one in experts] == [run, run]
