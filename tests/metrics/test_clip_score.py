"""The CLIP score on a tiny CLIP of transformers' own class: what it computes, and where it is used."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPTextModel

from tests.icg import tiny
from tests.toyroom.harness import record
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.metrics.clip_score import ClipScore


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    tokenizer, _ = tiny.clip(CLIPTextModel, 8)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 7, "bos_token_id": 0, "eos_token_id": 1}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_score_is_the_mean_cosine_of_each_picture_with_its_prompt(clip):
    score = ClipScore(clip, torch.device("cpu"))
    images = torch.rand(40, 3, 20, 20) * 2 - 1
    prompts = [("a", "b c", "b")[number % 3] for number in range(40)]  # in no step with the batches of 32
    each = [score(images[i : i + 1], prompts[i : i + 1]) for i in range(40)]
    assert score(images, prompts) == pytest.approx(sum(each) / 40, abs=1e-3) and len(set(each)) > 10
    assert min(each) >= 0 and max(each) <= 100
    checks = (torch.arange(40)[:, None] + torch.arange(40)).remainder(2).float().mul(2).sub(1).expand(1, 3, 40, 40)
    torch.testing.assert_close(score._pictures(checks), score._pictures(0 * checks), atol=0.02, rtol=0)  # fine, so grey
    grey = torch.rand(1, 1, 16, 16) * 2 - 1
    assert score(grey, ["a"]) == pytest.approx(score(grey.expand(1, 3, 16, 16), ["a"]))


def test_pictures_are_shown_as_clip_was_trained_and_what_does_not_fit_counts_nothing(clip):
    """Against CLIPModel's own logits, its scale times the cosines; a text turned round has minus the cosine."""
    score = ClipScore(clip, torch.device("cpu"))
    images, prompts = torch.rand(6, 3, 16, 16) * 2 - 1, ["a", "b c", "b", "c a", "a b", "c"]
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((images + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    tokens = score.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = score.net(pixel_values=pixels, **tokens).logits_per_image.diag()
        cosines = logits / score.net.logit_scale.exp()
        assert score(images, prompts) == pytest.approx(100 * float(cosines.clamp(min=0).mean()), abs=1e-3)
        score.net.text_projection.weight.neg_()
    assert score(images, prompts) == pytest.approx(100 * float((-cosines).clamp(min=0).mean()), abs=1e-3)
    assert cosines.abs().min() > 1e-3


def test_what_is_no_clip_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"measure\.clip=.*cannot be loaded"):
        ClipScore(str(tmp_path), torch.device("cpu"))


def test_a_text_model_is_scored_and_another_refuses(clip, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tiny.stable_diffusion().save_pretrained("sd")
    words = ["num_samples=2", "num_steps=2", f"measure.clip={clip}"]
    assert launch("sample-icg", ["model=sd", *words, "hydra.run.dir=one"]) == 0
    assert {"none.clip", "icg.w_1p5.clip"} <= set(record("one")["metrics"])
    assert "CLIP score" in capfd.readouterr().out
    tiny.ddpm().save_pretrained("ddpm")
    assert launch("sample-icg", ["model=ddpm", "guidance=tsg", *words, "hydra.run.dir=two"]) == 2
    assert "needs a model that takes prompts" in capfd.readouterr().err


def test_a_model_in_half_precision_is_read_as_float32(clip, tmp_path):
    CLIPModel.from_pretrained(clip).half().save_pretrained(tmp_path)
    for path in Path(clip).glob("*token*"):
        shutil.copy(path, tmp_path)
    images = torch.rand(3, 3, 20, 20) * 2 - 1
    scores = [ClipScore(str(where), torch.device("cpu"))(images, ["a", "b", "c"]) for where in (clip, tmp_path)]
    assert scores[0] == pytest.approx(scores[1], abs=0.5)
