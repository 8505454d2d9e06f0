"""What ``toolkit plan`` is told of the testbed's stages: steps from tokens."""

from toolkit.stacking.config import Budget, GrowLLM, Network, Optim
from toolkit.stacking.footprint import stages


def test_a_step_is_a_batch_of_sequences_and_what_is_left_is_one_more():
    """1000 tokens are 62.5, so 63 sequences of 16: at 8 a batch 8 steps; 257 tokens are 17 sequences, 3 steps."""
    config = GrowLLM(
        network=Network(num_hidden_layers=1, hidden_size=8, intermediate_size=8, context=16),
        budget=Budget(growth_tokens=257, tokens=1000, grown_tokens=1000, continued_tokens=1),
        optim=Optim(batch_size=8, scratch_lrs=[1e-3, 2e-3]),
    )
    found = {one.name: (one.num_steps, one.batch_size, one.repeats, one.cache_bytes) for one in stages(config)}
    assert found == {  # the tokens are kept once, two bytes each
        "base": (3, 8, 1, 2000), "grown": (8, 8, 1, 0), "scratch": (8, 8, 2, 0), "continued": (1, 8, 1, 0),
    }  # fmt: skip


def test_weights_are_gathered_in_half_where_the_pass_is_in_half_and_spread_where_it_is_asked_for():
    for precision, sharding in (("bf16", "fsdp"), ("fp32", "none")):
        config = GrowLLM(precision=precision, optim=Optim(sharding=sharding, micro_batch_size=3))
        for stage in stages(config):
            assert (stage.half, stage.sharded) == (precision == "bf16", sharding == "fsdp")
            assert (stage.precision, stage.micro_batch_size) == (precision, 3)
