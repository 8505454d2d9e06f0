"""The paper's sizes in FLOPs per token, and its fit of the growth timing."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.stacking.models import make_model
from tests.stacking.operators.test_families import model_of
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.stacking.measure.flops import cost
from toolkit.stacking.operators.families import family
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.pretrain.networks import llama_config, planned
from toolkit.stacking.stage_advise import advise

GFLOPS = {"410m": 2.243, "1b": 8.186, "3b": 14.385, "7b": 35.599}
MILLIONS = {"410m": (308.3, 77.1), "1b": (1233.2, 308.3), "3b": (2233.6, 558.4), "7b": (5671.0, 1417.7)}


@pytest.mark.parametrize("size", GFLOPS)
def test_presets_have_the_papers_sizes(size):
    config = compose(COMMANDS["grow-llm"], [f"experiment=grow_{size}"])
    network = llama_config(config.network, config.tokenize.vocab_size)
    target, base = cost(Llama(), planned(network, config.growth()).config), cost(Llama(), network)
    assert round(target.flops_total / 1e9, 3) == GFLOPS[size]
    assert (round(target.non_embedding / 1e6, 1), round(base.non_embedding / 1e6, 1)) == MILLIONS[size]
    assert round(target.non_embedding / base.non_embedding, 2) == 4


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_biases", "qwen3"])
def test_matmul_count_is_torchs(name):
    model, length = make_model(name), 16
    model.set_attn_implementation("eager")  # the counter does not see the fused kernel of the CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    assert counter.get_total_flops() == cost(Llama(), model.config, length).flops_matmul // 3 * length


def test_a_table_of_positions_is_no_matrix_product():
    """GPT-2's head is its embedding, and its positions are looked up."""
    short = model_of("gpt2").config
    long = type(short)(**short.to_diff_dict() | {"n_positions": 4 * short.n_positions})
    gpt2 = family(short, "")
    assert gpt2.tied(short) and cost(gpt2, long, 16).parameters > cost(gpt2, short, 16).parameters
    assert cost(gpt2, short, 16).flops_matmul == cost(gpt2, long, 16).flops_matmul


def test_parameters_count_a_tied_embedding_once():
    model = make_model("llama_tied")
    assert cost(Llama(), model.config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("params", "tokens", "billions"), [(8e9, 15e12, 6.58), (7e9, 2e12, 11.11), (13e9, 2e12, 15.84), (70e9, 2e12, 42.48)]
)
def test_llama_rows_of_table_4(params, tokens, billions):
    advice = advise(params, tokens)
    assert round(advice.growth_tokens / 1e9, 2) == billions
    assert advice.factor == 4


def test_base_share_and_warnings():
    inside = advise(1.1e9, 100e9)
    assert not inside.warnings
    assert inside.base_share == pytest.approx(inside.growth_tokens / 4 / 100e9)
    assert (inside.params, inside.tokens, inside.base_params) == (1.1e9, 100e9, 1.1e9 / 4)
    assert inside.total_flops == pytest.approx(6 * 1.1e9 * 100e9)
    assert "extrapolates" in advise(70e9, 2e12).warnings[0]
    assert "of the compute" in advise(410e6, 8e9).warnings[0]


@pytest.mark.parametrize(("params", "tokens"), [(1e6, 3e6), (124e6, 2.5e9)])
def test_small_budgets_are_refused(params, tokens):
    with pytest.raises(UserError, match="times the whole budget"):
        advise(params, tokens)


@pytest.mark.parametrize(("params", "tokens"), [(0, 1e9), (1e9, float("nan"))])
def test_senseless_numbers_are_refused(params, tokens):
    with pytest.raises(UserError, match="must be a number"):
        advise(params, tokens)
