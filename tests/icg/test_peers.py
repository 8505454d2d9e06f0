"""Guiders of other papers: against their formulas written out, and against diffusers' own."""

import numpy as np
import pytest
import torch
from diffusers.guiders import FrequencyDecoupledGuidance as TheirFDG
from diffusers.guiders import SkipLayerGuidance as TheirSLG
from diffusers.guiders import frequency_decoupled_guidance as their_fdg
from diffusers.hooks import LayerSkipConfig

from tests.icg import tiny
from tests.icg.sources.test_pipelines import CALLS, opened
from toolkit.errors import UserError
from toolkit.icg.guiders.base import Branch
from toolkit.icg.guiders.hooks import Attached
from toolkit.icg.methods import CFG, METHODS, NoGuidance
from toolkit.icg.peers.frequency_decoupled_guidance import FrequencyDecoupledGuidance, scaled_by_frequency
from toolkit.icg.peers.settings import FDG, SLG, CFGAndSLG, CFGZeroStar
from toolkit.icg.peers.skip_layer_guidance import SkipLayerGuidance, find_blocks
from toolkit.icg.sources.base import Request

KERNEL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
REQUEST = Request(seed=0, repeat=0, start=0, stop=2)


# -- the pyramid, written out for even sides -------------------------------------------------------------------------


def blurred(picture):
    padded = np.pad(picture, 2, mode="reflect")
    return sum(
        KERNEL[i, j] * padded[i : i + picture.shape[0], j : j + picture.shape[1]] for i in range(5) for j in range(5)
    )


def halved(picture):
    smooth = blurred(picture)
    return (smooth[::2, ::2] + smooth[1::2, ::2] + smooth[::2, 1::2] + smooth[1::2, 1::2]) / 4


def doubled(picture):
    """Three quarters of the nearer pixel, one of the further; the border's own where there is none."""
    for axis in (0, 1):
        before = np.concatenate([picture.take([0], axis), picture.take(range(picture.shape[axis] - 1), axis)], axis)
        after = np.concatenate([picture.take(range(1, picture.shape[axis]), axis), picture.take([-1], axis)], axis)
        pair = np.stack([0.75 * picture + 0.25 * before, 0.75 * picture + 0.25 * after], axis + 1)
        picture = pair.reshape(*picture.shape[:axis], -1, *picture.shape[axis + 1 :])
    return blurred(picture)


def each(act, x):
    """``act`` of every picture of (B, C, H, W)."""
    made = [[torch.from_numpy(act(one.double().numpy())) for one in row] for row in x]
    return torch.stack([torch.stack(row) for row in made]).float()


def pyramid(x, num_levels):
    levels = []
    for _ in range(num_levels - 1):
        smaller = each(halved, x)
        levels.append(x - each(doubled, smaller))
        x = smaller
    return [*levels, x]


def predictions(*shape, num=2):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("scales", "size"), [((3.0, 1.5), (8, 8)), ((7.0, 0.0, 2.0), (16, 12)), ((0.5,), (2, 2))])
def test_the_levels_of_the_pyramid_have_their_scales(scales, size):
    x = predictions(3, *size)
    levels = [scale * level for scale, level in zip(scales, pyramid(x, len(scales)), strict=True)]
    expected = levels.pop()
    while levels:
        expected = levels.pop() + each(doubled, expected)
    torch.testing.assert_close(scaled_by_frequency(x, scales), expected, atol=1e-5, rtol=0)


def test_equal_scales_multiply_whatever_the_size_and_frames_are_alone():
    film = predictions(2, 3, 9, 14)
    torch.testing.assert_close(scaled_by_frequency(film, (2.5,) * 3), 2.5 * film, atol=1e-5, rtol=0)
    frames = torch.stack([scaled_by_frequency(film[:, :, frame], (3.0, 1.0)) for frame in range(3)], 2)
    torch.testing.assert_close(scaled_by_frequency(film, (3.0, 1.0)), frames)
    for shape, scales in (((4, 5), (2.0, 1.0)), ((4, 2, 2), (2.0, 1.0)), ((4, 5, 8), (2.0, 1.0, 1.0))):
        with pytest.raises(UserError, match=r"needs pictures of \d pixels a side or more; the network"):
            scaled_by_frequency(predictions(*shape), scales)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_frequencies_are_guided_as_diffusers_guides_them(monkeypatch, rescale):
    """Their guider on the pyramid written out above, in the place of kornia's."""
    monkeypatch.setattr(their_fdg, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(their_fdg, "build_laplacian_pyramid_func", pyramid)
    monkeypatch.setattr(their_fdg, "upsample_and_blur_func", lambda x: each(doubled, x))
    scales = [4.0, 2.0, 1.5]
    cond, null = predictions(3, 16, 16), predictions(3, 16, 16, num=4)[2:]
    expected = TheirFDG(scales, guidance_rescale=rescale).forward(cond, null).pred
    ours = FrequencyDecoupledGuidance(scales, guidance_rescale=rescale)
    ours.plan = [None, Branch("pred_uncond", ours, "cfg", 4.0, slot=1)]
    torch.testing.assert_close(ours.forward(cond, pred_uncond=null).pred, expected, atol=1e-5, rtol=0)


# -- skipped blocks --------------------------------------------------------------------------------------------------


def theirs(scale, *layers):
    """Beside classifier-free guidance at 2, for alone it skips nothing; and never in the first step."""
    config = LayerSkipConfig(indices=list(layers), fqn="transformer_blocks")
    steps = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    return TheirSLG(guidance_scale=2.0, skip_layer_guidance_scale=scale, skip_layer_config=config, **steps)


class FromTheSecondStep(SkipLayerGuidance):
    """Classifier-free guidance in all steps, blocks skipped in all but the first."""

    def set_state(self, step, *rest):
        self.skip_scale = 1.0 if step == 0 else 4.0
        super().set_state(step, *rest)


def test_blocks_are_skipped_as_diffusers_skips_them():
    """In DiT: of the blocks of SD3 and Flux their guider exchanges the streams (diffusers 0.42)."""
    null = {"class_labels": tiny.NUM_CLASSES}
    expected, calls = tiny.run("dit", theirs(3.0, 1), null=null)
    cfg, _ = tiny.run("dit", SkipLayerGuidance(1.0, [1], guidance_scale=2.0), null=null)
    images, ours = tiny.run("dit", FromTheSecondStep(4.0, [1], guidance_scale=2.0), null=null)  # w = 1 + theirs
    assert calls == ours == 11 and not torch.allclose(images, cfg)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=1e-4)
    batched, _ = tiny.run("dit", FromTheSecondStep(4.0, [1], guidance_scale=2.0), null=null, batched=True)
    torch.testing.assert_close(batched, images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "layer"), [("dit", 1), ("sd3", 0), ("flux", 0)])
def test_a_network_whose_block_is_skipped_is_one_without_it(kind, layer):
    network, seen = tiny.network(kind), []
    handle = network.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    tiny.sample(kind, num_inference_steps=1)
    handle.remove()
    (args, kwargs), blocks = seen[0], network.transformer_blocks
    skip = SkipLayerGuidance(3.0, [layer])._branches({})[0].changes[0]
    with torch.no_grad():
        Attached(network, [(skip, None)])
        skipped, whole = (network(*args, **kwargs)[0] for _ in range(2))
        network.transformer_blocks = torch.nn.ModuleList([*blocks[:layer], *blocks[layer + 1 :]])
        try:
            without = network(*args, **kwargs)[0]
        finally:
            network.transformer_blocks = blocks
    torch.testing.assert_close(skipped, without, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(skipped, whole, atol=1e-3)


@pytest.mark.parametrize("kind", ["dit", "sd3"])
def test_a_batched_call_skips_in_the_rows_of_the_weak_branch(kind):
    images, calls = tiny.run(kind, SkipLayerGuidance(3.0, [0]))
    batched, fewer = tiny.run(kind, SkipLayerGuidance(3.0, [0]), batched=True)
    torch.testing.assert_close(batched, images, atol=1e-4, rtol=1e-4)
    assert (calls, fewer) == (8, 4) and not torch.allclose(images, tiny.sample(kind), atol=1e-3)
    assert torch.equal(tiny.sample(kind), tiny.run(kind, SkipLayerGuidance(1.0, [0]))[0])


def test_blocks_that_are_not_there_are_one_line():
    with pytest.raises(UserError, match="UNet2DConditionModel has no transformer blocks that can be skipped"):
        find_blocks(tiny.network("stable_diffusion"), [0])
    for layers in ([3], [-1], [], [True]):
        with pytest.raises(UserError, match=r"transformer_blocks of DiTTransformer2DModel are 0 \.\. 2"):
            find_blocks(tiny.network("dit"), layers)
    with pytest.raises(UserError, match=r"guidance\.layers=\[\]"):
        SLG(layers=[]).check()


def test_an_empty_stack_has_no_blocks_to_skip():
    network, blocks = torch.nn.Module(), tiny.network("dit").transformer_blocks
    network.refiner, network.blocks = torch.nn.ModuleList(), blocks
    assert find_blocks(network, [2, 0]) == [("blocks.0", blocks[0]), ("blocks.2", blocks[2])]


# -- on the command line ---------------------------------------------------------------------------------------------


def test_they_stand_beside_on_pipelines(tmp_path):
    source = opened(tmp_path, "WanPipeline", call=CALLS["WanPipeline"], size_px=48)
    plain, calls = source.draw(NoGuidance(), 1.0, REQUEST)
    cfg, _ = source.draw(CFG(), 3.0, REQUEST)
    for guidance, factor in ((FDG(), 2), (SLG(layers=[0]), 2), (CFGAndSLG(slg=SLG(layers=[0])), 3)):
        source.refuse(guidance)
        images, more = source.draw(guidance, 3.0, REQUEST)
        assert more == factor * calls == guidance.calls_per_step * calls and torch.isfinite(images).all()
        assert not torch.allclose(images, cfg) and not torch.allclose(images, plain)
    same, _ = source.draw(FDG(coarse_scales=[3.0]), 3.0, REQUEST)
    torch.testing.assert_close(same, cfg, atol=2e-3, rtol=0)
    assert torch.equal(source.draw(FDG(), 1.0, REQUEST)[0], plain)
    assert torch.equal(source.draw(SLG(layers=[0]), 1.0, REQUEST)[0], plain)
    with pytest.raises(UserError, match=r"layers=\[7, 8, 9\]: blocks of WanTransformer3DModel are"):
        source.refuse(SLG())
    with pytest.raises(UserError, match="compile=true: SLG needs the network itself"):
        source.config.compile = True
        source.refuse(SLG(layers=[0]))


def test_cfg_zero_star_leaves_its_first_steps_out_unless_it_guides_nothing():
    steps = [CFGZeroStar(zero_init_steps=2).make(scale, 0).zero_init_steps for scale in (1.0, 3.0)]
    assert steps == [0, 2]


def test_guiders_of_diffusers_know_shares_of_the_steps_and_no_times_or_noise_levels():
    CFGZeroStar(start=0.2, stop=0.8).check()
    for key, value in {"t_min": 1.0, "t_max": 999.0, "sigma_min": 0.1, "sigma_max": 9.0}.items():
        with pytest.raises(UserError, match=rf"guidance\.{key}={value}: .* takes start and stop alone"):
            CFGZeroStar(**{key: value}).check()


def test_they_have_rows_of_the_table():
    assert METHODS["fdg"] is FDG and METHODS["slg"] is SLG and METHODS["cfg_slg"] is CFGAndSLG
    with pytest.raises(UserError, match=r"guidance\.coarse_scales=\[inf\]"):
        FDG(coarse_scales=[float("inf")]).check()
