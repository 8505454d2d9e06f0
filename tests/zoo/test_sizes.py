"""A config that asks for far more than its weights hold is refused while its network is built, in a moment."""

import json
import shutil

import pytest

from tests.toyroom.harness import REPO
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo.importing import read_tensors
from toolkit.zoo.loading import refuse_other_libraries
from toolkit.zoo.sizes import sizes_in

BEFORE = REPO / "tests/files/before"
DENOISER = "train-disco/run/model/denoiser"
WORLD = "train-ivideogpt/run/model"


@pytest.mark.parametrize(
    ("network", "config", "changes"),
    [
        (WORLD, "tokenizer/config.json", {"layers_per_block": 10**9}),
        (WORLD, "tokenizer/config.json", {"num_vq_embeddings": 10**12}),
        (WORLD, "transformer/config.json", {"num_hidden_layers": 10**9}),
        (WORLD, "transformer/config.json", {"vocab_size": 10**9}),
        (WORLD, "transformer/config.json", {"hidden_size": 10**6, "head_dim": 10**9}),
        (DENOISER, "config.json", {"num_blocks": 10**9}),
        (DENOISER, "config.json", {"model_channels": 10**4}),
    ],
)
def test_sizes_are_refused_before_they_are_built(tmp_path, network, config, changes):
    folder = shutil.copytree(BEFORE / network, tmp_path / "model")
    path = folder / config
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match="asks for a larger network than its weights are") as caught:
        zoo.load(folder)
    assert config in str(caught.value)


def test_loading_counts_only_inside(tmp_path):
    import torch

    zoo.load(BEFORE / DENOISER)
    assert not torch.nn.modules.module._global_parameter_registration_hooks


@pytest.mark.parametrize("library", ["evil", "os", "toolkit.cli", 3, ["os"]])
def test_a_pipeline_imports_no_other_libraries(library):
    good = {"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"], "text_encoder": [None, None], "scale": 1.0}
    refuse_other_libraries("model_index.json", good)
    with pytest.raises(UserError, match=r"model_index\.json: unet comes from .*only parts of diffusers"):
        refuse_other_libraries("model_index.json", good | {"unet": [library, "X"]})


def test_an_enhancer_s_index_names_no_library_of_somebody_else(tmp_path, monkeypatch):
    from toolkit.venhancer.pipeline import load_pipeline

    folder = shutil.copytree(BEFORE / "enhance-video/run/model", tmp_path / "model")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'MADE')!r}, 'w')\nclass Evil:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_pipeline(str(folder))
    path = folder / "model_index.json"
    for part in ("text_encoder", "tokenizer", "vae"):
        path.write_text(json.dumps({**json.loads(path.read_text()), part: ["evil", "Evil"]}))
        with pytest.raises(UserError, match="comes from evil, and only parts of diffusers"):
            load_pipeline(str(folder))
    assert not (tmp_path / "MADE").exists()


@pytest.mark.parametrize(("name", "read"), [("safe_open", lambda path: sizes_in([path])), ("load_file", read_tensors)])
def test_a_file_too_long_to_be_mapped_is_one_line(tmp_path, monkeypatch, name, read):
    def refuse(*_, **__):
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr(f"safetensors.{name}" if name == "safe_open" else f"toolkit.zoo.importing.{name}", refuse)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.safetensors: .*safetensors file.*Cannot allocate memory"):
        read(tmp_path / "a.safetensors")
