"""Tiny real language models with every weight drawn, gains and biases too, so that no error hides behind a zero."""

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from toolkit.stacking.operators.grow import Grown, grow
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.tensors import InMemory

VOCABULARY = 97
_SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama_mha": lambda: LlamaConfig(**{**_SIZES, "num_key_value_heads": 4}),
    "llama_tied": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "llama_biases": lambda: LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=4),
    "ministral": lambda: MinistralConfig(**_SIZES, head_dim=8, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=16),
    "smollm3": lambda: SmolLM3Config(**_SIZES, no_rope_layers=[1, 0, 1]),
}


def make_model(name="llama", seed=0, dtype=torch.float32, **changes):
    """A tiny model of a family, weights drawn with standard deviation 0.2 (gains around 1)."""
    config = CONFIGS[name]()
    config = type(config).from_dict({**config.to_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            draws = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(draws + 1 if "norm" in key else draws)
    return model.to(dtype).eval()


def grow_model(model, growth, seed=0, growth_map=None) -> Grown:
    """Growth in memory."""
    state = model.state_dict()
    names = Llama().shapes(model.config)
    return grow(Llama(), model.config, InMemory({name: state[name] for name in names}), growth, seed, growth_map)


def read_all(grown, dtype=None):
    """The grown state dict."""
    return {name: grown.tensors.read(name).to(dtype or info.dtype) for name, info in grown.tensors.infos.items()}


def build(grown):
    """A transformers model with the grown weights, loaded strictly."""
    model = AutoModelForCausalLM.from_config(grown.config)
    state = read_all(grown)
    if grown.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def token_ids(batch=2, length=12, seed=1):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def relative_change(after, before):
    """Largest difference over the largest value. Float32 rounds these networks' outputs by less than 1e-5 (84 eps)."""
    return ((after - before).abs().max() / before.abs().max()).item()


def make_tokenizer(vocabulary=VOCABULARY):
    """A word tokenizer of as many entries."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<bos>", "<eos>", "<unk>", "the", "river", "and", "of", "it"]
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_bpe(vocabulary=320):
    """A byte-level BPE of as many entries, trained on a line that says nothing."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    text = "the river and the mill and the bridge over the river where the water falls in the winter"
    bpe.train_from_iterator([text], vocabulary, min_frequency=1, special_tokens=["<pad>", "<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
