"""The pipeline: saved and loaded whole, called on frames in memory, with real text encoders and autoencoders."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from tests.venhancer.networks import clip, tiny_pipeline
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.runs.seeds import generator
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.engine.enhancer import Enhancer
from toolkit.venhancer.engine.layout import plan_layout
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.engine.window_steps import WindowSteps
from toolkit.venhancer.model.codec import PixelUnshuffleCodec, VAECodec
from toolkit.venhancer.model.loading import load_text_encoder, load_vae, penultimate
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.pipeline import VideoEnhancePipeline, load_pipeline, place_pipeline
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet
from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet

CALL = {"scale": 1.5, "frame_factor": 2, "num_steps": 2, "noise_level": 50, "seed": 3}


def test_saved_loaded_and_called(tmp_path):
    pipeline, video = tiny_pipeline(data_std=0.7, tile_rows=20), clip(3, 12, 18)
    frames = pipeline(video, **CALL).frames
    assert frames.shape == (5, 18, 27, 3) and frames.dtype == np.uint8
    pipeline.save_pretrained(tmp_path / "model")
    again = VideoEnhancePipeline.from_pretrained(tmp_path / "model")
    assert again.config["data_std"] == 0.7 and again.config["tile_rows"] == 20
    assert np.array_equal(again(video, **CALL).frames, frames)
    assert isinstance(zoo.load(tmp_path), ControlledVideoUNet)  # as a run folder's model/denoiser


def test_a_pipeline_saved_when_its_classes_lay_in_other_files(tmp_path):
    pipeline, index = tiny_pipeline(), tmp_path / "model_index.json"
    pipeline.save_pretrained(tmp_path)
    saved = json.loads(index.read_text())
    saved["scheduler"][0], saved["vae"][0] = "toolkit.venhancer.schedule", "toolkit.venhancer.codec"
    saved["denoiser"][0] = "toolkit.zoo.controlled_video_unet"
    index.write_text(json.dumps(saved))
    again, weights = VideoEnhancePipeline.from_pretrained(tmp_path), pipeline.denoiser.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.denoiser.state_dict().items())
    assert type(again.scheduler) is VideoNoiseSchedule and type(again.vae) is PixelUnshuffleCodec


def test_callback_sees_every_window_of_every_step():
    seen = []
    tiny_pipeline()(clip(3, 8, 8), callback_on_step_end=seen.append, **CALL)
    assert [one.step for one in seen] == [0, 1] and seen[-1].done == seen[-1].total == 2


@pytest.mark.parametrize("frames", [1, 3])
def test_half_precision(frames, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    pipeline = place_pipeline(EnhanceVideo(model=str(tmp_path), precision="bf16"), "cpu")
    assert pipeline.denoiser.dtype == torch.bfloat16
    enhanced = pipeline(clip(frames, 12, 18), scale=1.5, frame_factor=2, num_steps=2, noise_level=50).frames
    full = tiny_pipeline()(clip(frames, 12, 18), scale=1.5, frame_factor=2, num_steps=2, noise_level=50).frames
    assert np.abs(enhanced.astype(int) - full).mean() < 2


def tiny_autoencoder(temporal, seed=0):
    torch.manual_seed(seed)
    common = {"block_out_channels": (32, 32), "latent_channels": 4, "layers_per_block": 1}
    if temporal:
        return AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 2, **common).eval()
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**kinds, **common).eval()


def text_folder(folder, layers=2, width=16):
    """A CLIP text encoder and tokenizer of the right kind, tiny."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=9)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=9,
        eos_token_id=len(words) - 1,
        bos_token_id=len(words) - 2,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    CLIPTextModel(config).eval().save_pretrained(folder / "text_encoder")
    return folder


def imported_network(folder):
    """What ``zoo import venhancer`` leaves: a network without codec and text."""
    torch.manual_seed(0)
    unet = VideoUNet(
        block_out_channels=(32, 32),
        attention_levels=(True, False),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=16,
        entry_heads=1,
        asymmetric=True,
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    ControlledVideoUNet.from_parts(unet, VideoControlNetModel.from_unet(unet)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("temporal", [False, True])
def test_an_imported_network_with_autoencoder_and_text(temporal, tmp_path):
    tiny_autoencoder(temporal).save_pretrained(tmp_path / "svd" / "vae")
    parts = {"vae": str(tmp_path / "svd"), "text_encoder": str(text_folder(tmp_path / "sd"))}
    model = str(imported_network(tmp_path / "network"))
    settings = EnhanceSettings(21, 32, frame_factor=2, prompt="a dog", negative_prompt="bad").changed(
        num_steps=2, guidance_scale=7.5, tile_height_px=24, tile_width_px=24
    )
    enhancer = Enhancer(load_pipeline(model, **parts), settings)
    plan_of = [enhancer.plan(Frames(clip(4, 10, 16)))]
    assert plan_of[0].evaluations == 4 and plan_of[0].tiles == 2 and plan_of[0].notes == ()
    out = np.concatenate([one.frames for one in enhancer.enhance(Frames(clip(4, 10, 16)), tmp_path / "work")])
    assert out.shape == (7, 21, 32, 3) and out.std() > 1
    enhancer.pipeline.save_pretrained(tmp_path / "whole")
    again = Enhancer(load_pipeline(str(tmp_path / "whole")), settings)
    same = np.concatenate([one.frames for one in again.enhance(Frames(clip(4, 10, 16)), tmp_path / "again")])
    assert np.array_equal(out, same)


class Frames:
    """A source that is read as the job's is."""

    def __init__(self, video):
        self.video, (self.num_frames, self.height, self.width) = video, video.shape[:3]

    def frames(self, start):
        yield from self.video[start:]


def test_prompts_and_guidance_batches(tmp_path):
    encoder, tokenizer = load_text_encoder(str(text_folder(tmp_path / "sd")))
    unet = VideoUNet(
        in_channels=12, out_channels=12, block_out_channels=(32, 32), attention_levels=(False, False),
        layers_per_block=1, cross_attention_dim=16, attention_head_dim=16, entry_heads=1,
    )  # fmt: skip
    pair = ControlledVideoUNet.from_parts(unet, VideoControlNetModel.from_unet(unet))
    pipeline = VideoEnhancePipeline(pair, PixelUnshuffleCodec(2), VideoNoiseSchedule(), encoder, tokenizer)
    both = pipeline.encode_prompt("a cat", "blurry", guided=True)
    assert both.shape == (2, 9, 16)
    alone = pipeline.encode_prompt("a cat", "blurry", guided=False)
    assert torch.allclose(both[:1], alone, atol=1e-5)  # 84 eps: a norm's output, and two texts may round unlike one
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_random_words_take_the_negative_prompts_place_step_by_step(tmp_path):
    tiny_autoencoder(False).save_pretrained(tmp_path / "svd" / "vae")
    parts = {"vae": str(tmp_path / "svd"), "text_encoder": str(text_folder(tmp_path / "sd"))}
    pipeline = load_pipeline(str(imported_network(tmp_path / "network")), **parts)
    settings = EnhanceSettings(16, 16, prompt="a dog", negative_prompt="bad").changed(num_steps=3, guidance_scale=7.5)
    drawn = []
    for words in ({"guidance": "cfg"}, {"guidance": "icg"}, {"guidance": "icg", "seed": 1}, {"guidance": "icg"}):
        asked = settings.changed(**words)
        layout = plan_layout(pipeline, asked, Frames(clip(4, 10, 16)))
        assert layout.guided
        drawn.append(torch.stack(WindowSteps(pipeline, asked, layout, None).texts))
    cfg, icg, other, again = drawn
    assert icg.shape == cfg.shape == (3, 2, 9, 16) and torch.equal(icg, again)
    torch.testing.assert_close(icg[:, 0], cfg[:, 0])  # the prompt's stays
    assert torch.equal(cfg[0], cfg[1]) and torch.equal(cfg[0], cfg[2])
    apart = [*icg[:, 1], *other[:, 1], cfg[0, 1]]  # by step and seed, and no negative prompt among them
    assert all((one - two).abs().max() > 1e-3 for place, one in enumerate(apart) for two in apart[:place])
    with torch.no_grad():
        ids = torch.randint(55, (1, 9), generator=generator(0, "icg", 2))
        expected = penultimate(pipeline.text_encoder, pipeline.text_encoder(ids, output_hidden_states=True))
    assert torch.equal(icg[2, 1:], expected)


def test_text_is_the_last_layer_but_one_with_the_final_norm(tmp_path):
    encoder, tokenizer = load_text_encoder(str(text_folder(tmp_path / "clip", layers=24)))
    tokens = tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = encoder(tokens, output_hidden_states=True)
        ours = penultimate(encoder, output)
        del getattr(encoder, "text_model", encoder).encoder.layers[23]  # as Stable Diffusion 2 ships it
        encoder.config.num_hidden_layers = 23
        theirs = encoder(tokens).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_prompt_for_a_model_without_text_is_ignored():
    pipeline = tiny_pipeline()
    assert torch.equal(pipeline.encode_prompt("a cat", "", True), torch.zeros(1, 1, 4))


def test_unshuffle_is_exact():
    codec, frames = PixelUnshuffleCodec(4, scale=0.5), torch.randn(2, 3, 8, 12)
    latents = codec.encode(frames)
    assert latents.shape == (2, 48, 2, 3) == (2, codec.channels, 2, 3)
    assert torch.equal(codec.decode(latents), frames)


@torch.no_grad()
@pytest.mark.parametrize("temporal", [False, True])
def test_autoencoders_give_the_mode_scaled(temporal):
    vae = tiny_autoencoder(temporal)
    codec, frames = VAECodec(vae), torch.randn(3, 3, 8, 8)
    expected = vae.encode(frames).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(codec.encode(frames), expected, atol=1e-5, rtol=1e-5)
    assert codec.decode(codec.encode(frames)).shape == frames.shape
    assert (codec.factor, codec.channels, codec.context) == (2, 4, 1 if temporal else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": None}, "vae: needed beside model="),
        ({"text_encoder": None}, "text_encoder: needed beside model="),
        ({"vae": "nowhere/at/all"}, "vae=nowhere/at/all: cannot be loaded"),
        ({"model": "nothing-here"}, "model=nothing-here|nothing-here"),
    ],
)
def test_parts_that_are_missing(change, message, tmp_path):
    tiny_autoencoder(False).save_pretrained(tmp_path / "vae")
    given = {
        "model": str(imported_network(tmp_path / "network")),
        "vae": str(tmp_path / "vae"),
        "text_encoder": str(text_folder(tmp_path / "sd")),
    }
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(**given | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("diffuses", 5, "one of latents, residuals"),
        ("resize", 5, "one of bilinear, bicubic"),
        ("blend", "yes", "true or false"),
        ("data_std", "0.5", "null or a number above 0"),
        ("data_std", 0, "null or a number above 0"),
        ("data_std", True, "null or a number above 0"),
        ("tile_rows", 16.5, "a whole number from 1 to 1048576"),
        ("tile_columns", None, "a whole number from 1 to 1048576"),
        ("max_frames", 1, "a whole number from 2 to 1048576"),
        ("max_frames", [32], "a whole number from 2 to 1048576"),
    ],
)
def test_a_setting_that_a_pipelines_index_cannot_have(key, value, expected):
    with pytest.raises(UserError, match=f"^{key} is {re.escape(repr(value))}; expected {expected}$"):
        tiny_pipeline(**{key: value})


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (PixelUnshuffleCodec, "factor", "4"),
        (PixelUnshuffleCodec, "factor", 4.0),
        (PixelUnshuffleCodec, "scale", 0),
        (PixelUnshuffleCodec, "scale", None),
        (VideoNoiseSchedule, "num_train_timesteps", 900),
        (VideoNoiseSchedule, "num_train_timesteps", 10**12),
        (VideoNoiseSchedule, "scale_min", -2),
        (VideoNoiseSchedule, "scale_max", "4"),
    ],
)
def test_a_setting_that_codec_and_schedule_cannot_have(make, key, value):
    with pytest.raises(UserError, match=f"^{key} is {re.escape(repr(value))}; expected a "):
        make(**{key: value})


@pytest.mark.parametrize(
    ("video", "found"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"float32 \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"uint8 \(2, 8, 8, 4\)"),
        ([], "list"),
    ],
)
def test_frames_of_another_kind_are_refused(video, found):
    with pytest.raises(UserError, match=f"^video: {found}; expected an array uint8"):
        tiny_pipeline()(video, **CALL)


def test_a_setting_in_a_saved_index_is_refused_when_it_is_read(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"max_frames": "32"}))
    with pytest.raises(UserError, match=r"max_frames is '32'; expected a whole number from 2 to") as error:
        load_pipeline(str(tmp_path))
    assert str(error.value).startswith(f"model={tmp_path}: ")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match=r"vae=.*UNet2DModel there, expected one of AutoencoderKL"):
        load_vae(str(tmp_path))
    with pytest.raises(UserError, match=r"no config.json there"):
        load_vae(str(tmp_path / ".."))


@torch.no_grad()
def test_frames_are_encoded_whole_where_one_tile_holds_them_and_blended_where_not(tmp_path):
    from toolkit.venhancer.engine.in_flight import Flight, Geometry
    from toolkit.venhancer.engine.transcode import Transcoder
    from toolkit.venhancer.model.conditioning import Fill

    codec, frame = VAECodec(tiny_autoencoder(False)), clip(1, 24, 40)[0]
    flight = Flight(tmp_path, Geometry(4, 12, 20, 1, 1, 24, 40, 1), "test")
    flight.keep_key_frame(0, frame)
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = codec.encode(pixels)
    cut_up = []
    for tile in ((12, 20), (8, 12)):
        transcoder = Transcoder(codec, flight, Fill(), (24, 40), tile, None, torch.device("cpu"))
        cut_up.append(torch.cat([transcoder.hint(0, (start, start + 4), (0, 20)) for start in (0, 4, 8)], dim=2))
    torch.testing.assert_close(cut_up[0], expected)
    assert 0 < (cut_up[1] - expected).abs().max() < 0.5 * expected.abs().max()


def test_no_room_on_the_disk_is_one_line(tmp_path):
    from toolkit.errors import JobError
    from toolkit.venhancer.engine.frame_store import FrameStore

    with pytest.raises(JobError, match=r"latents0: \d+ MiB for what is in flight"):
        FrameStore(tmp_path / "latents0", 10**6, 100, 1000, 1000)
    assert not list(tmp_path.iterdir())
