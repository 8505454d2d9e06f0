"""From a config to networks and records: every size in its place, whose seed, what a trained model keeps."""

import dataclasses

import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt import build, footprint, job
from toolkit.ivideogpt.build import (
    build_tokenizer,
    build_transformer,
    check_length,
    init_transformer,
    start_tokenizer,
    start_transformer,
    trained_world,
)
from toolkit.ivideogpt.config import TransformerOptim
from toolkit.ivideogpt.measure import measure_tokens
from toolkit.ivideogpt.measure.setting import Setting
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel


def test_every_size_of_the_networks_is_the_configs():
    config = tiny.config(context_length=2)
    keys, sizes = config.tokenizer, config.transformer
    keys.block_out_channels, keys.layers_per_block, keys.latent_channels, keys.norm_num_groups = [8, 16], 2, 3, 2
    keys.num_vq_embeddings, keys.num_dyn_embeddings, keys.patch_size, keys.max_att_resolution = 12, 20, 2, 4
    coder = build_tokenizer(config, 16)
    found = coder.config
    assert (found.layers_per_block, found.latent_channels, found.norm_num_groups) == (2, 3, 2)
    assert (found.num_vq_embeddings, found.num_dyn_embeddings, found.patch_size) == (12, 20, 2)
    assert (found.max_att_resolution, found.context_length, found.resolution) == (4, 2, 16)
    sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers = 24, 40, 3
    sizes.num_attention_heads, sizes.num_key_value_heads, sizes.max_position_embeddings = 4, 2, 400
    sizes.attention_dropout, sizes.spatial_embedding = 0.3, True
    made = build_transformer(config, coder, 5).config
    assert (made.hidden_size, made.intermediate_size, made.num_hidden_layers) == (24, 40, 3)
    assert (made.num_attention_heads, made.num_key_value_heads, made.max_position_embeddings) == (4, 2, 400)
    assert made.attention_dropout == 0.3 and made.spatial_embedding and made.action_dim == 5


def test_a_clip_may_fill_the_positions_to_the_last():
    """Four frames: 64 tokens and a slot, three times four and a slot, less one: 79."""
    check_length(tiny.config(), tiny.tokenizer(), 79)
    with pytest.raises(UserError, match=r"makes 79 tokens.*=78 hold 3 frames"):
        check_length(tiny.config(), tiny.tokenizer(), 78)


def weights(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


def test_networks_begin_by_the_runs_seed_each_by_its_own():
    clips, begun = tiny.clips(), []
    for seed in (1, 1, 2):
        config = tiny.config(seed=seed)
        config.tokenizer.dropout, config.tokenizer.start_diagonal = 0.3, 0.5
        torch.manual_seed(len(begun))  # what was drawn before does not matter
        coder = start_tokenizer(config, clips)
        torch.manual_seed(10 + len(begun))
        network, knows = start_transformer(config, coder, clips)
        begun.append([weights(coder), weights(network)])
        assert {block.resid_dropout.p for block in coder.cond_encoder.cross_att_blocks} == {0.3} and not knows
    for first, again, other in zip(*begun, strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)
    diagonal = []
    for seed in (1, 2):
        torch.manual_seed(0)
        config = tiny.config(seed=seed)
        config.tokenizer.start_diagonal = 0.5
        diagonal.append(build_tokenizer(config, 16).cond_decoder.cross_att_blocks[0].q_pos_emb.clone())
    assert not torch.equal(*diagonal)


@pytest.fixture
def saved(tmp_path):
    """A world model of two context frames that takes no actions, with a goal."""
    plain = tiny.world(action_dim=0, has_reward=False, context_length=2, positions=300)
    WorldModel(plain.tokenizer, plain.transformer, goal_conditioned=True).save_pretrained(tmp_path / "world")
    return str(tmp_path / "world")


def test_what_training_starts_from_is_trained_on(saved):
    clips = tiny.clips()
    config = tiny.config(init=saved, context_length=2)
    config.tokenizer.dropout = 0.25
    coder = start_tokenizer(config, clips)
    assert all(one.requires_grad for one in coder.parameters()) and coder.layout.context_length == 2
    assert coder.cond_decoder.cross_att_blocks[0].att.dropout == 0.25
    network, knows = start_transformer(config, coder, clips)
    assert all(one.requires_grad for one in network.parameters()) and not knows
    assert network.action_dim == 2 and network.has_reward  # an action-free one gets both heads
    free = tiny.config(init=saved, context_length=2, action_conditioned=False, reward_head=False)
    assert init_transformer(free, clips).action_dim == 0
    whole, _ = start_transformer(free, coder, clips)  # as it is, with no head to add
    assert whole.action_dim == 0 and all(one.requires_grad for one in whole.parameters())
    assert init_transformer(dataclasses.replace(free, init_parts="tokenizer"), clips) is None
    one = start_tokenizer(tiny.config(init=saved), clips)
    assert one.layout.context_length == 1  # of the two frames' places the newer's
    with pytest.raises(UserError, match="init="):
        start_tokenizer(tiny.config(init=saved, context_length=5), clips)


def test_a_run_without_a_transformer_gives_its_tokenizer_alone(tmp_path):
    world = tiny.world()
    world.tokenizer.save_pretrained(tmp_path / "run" / "model" / "tokenizer")
    assert build._has_tokenizer_only(str(tmp_path / "run"))
    world.save_pretrained(tmp_path / "run" / "model")
    assert not build._has_tokenizer_only(str(tmp_path / "run"))
    assert not build._has_tokenizer_only(str(tmp_path / "run" / "model"))


def test_a_trained_model_keeps_its_goal_and_its_frames_and_the_config_may_name_another(tmp_path, saved):
    clips = tiny.clips()
    config = tiny.config(goal_conditioned=True, kept_frames=1)
    coder = tiny.tokenizer()
    made = build.join(coder, build_transformer(config, coder, 2), config, clips)
    assert made.config["goal_conditioned"] and made.config["kept_frames"] == 1
    assert made.config["action_low"] == [-1, -1] and made.config["action_high"] == [1, 1]
    run = Run(tmp_path / "run", config)
    tiny.world().save_pretrained(run.dir / "model")
    found = trained_world(run, tiny.config(), clips, torch.device("cpu"))
    assert found.spec.T0 == 1 and found.spec.action_dim == 2
    free = tiny.config(model=saved, context_length=2, action_conditioned=False)
    assert trained_world(run, free, clips, torch.device("cpu")).spec.goal_conditioned
    refused = {
        "context frames: it has 1, this config 2": {"context_length": 2},
        "numbers of an action: it has 2, this config 0": {"action_conditioned": False},
    }
    for message, changes in refused.items():
        with pytest.raises(UserError, match=message):
            trained_world(run, tiny.config(**changes), clips, torch.device("cpu"))


def test_parameters_of_both_networks_are_recorded(tmp_path):
    run, world = Run(tmp_path, tiny.config()), tiny.world()
    job._note_parameters(run, tokenizer=world.tokenizer)
    job._note_parameters(run, transformer=world.transformer)
    counted = {name: len(weights(getattr(world, name))) for name in ("tokenizer", "transformer")}
    assert run.record["parameters"] == counted


def test_a_simulator_is_looked_for_where_it_is_planned_or_measured_in(monkeypatch):
    made = []
    clips = tiny.clips()
    monkeypatch.setattr(
        type(clips.dataset), "make_env", lambda self: made.append(1) or type("Env", (), {"close": lambda _: None})()
    )
    for names, wanted in ((["actions"], 1), (["long"], 1), (["tokenizer"], 0)):
        config = tiny.config()
        config.measure.names = names
        made.clear()
        job._check_simulator(config, clips.dataset)
        assert len(made) == wanted
    made.clear()
    job._check_simulator(tiny.config(stage="transformer"), clips.dataset)
    assert not made


def test_a_dry_run_counts_tokens_and_the_bytes_of_training(monkeypatch):
    """16 bytes a weight: weight, gradient and two moments of Adam, each float32."""
    told = []
    monkeypatch.setattr(job, "dry_run_table", lambda rows, _: told.append({row[0]: row[1:] for row in rows}))
    monkeypatch.setattr(job, "show", lambda _: None)
    job.dry_run(tiny.config())
    rows = told[0]
    total = rows["tokenizer"][0] + rows["transformer"][0]
    assert rows["tokenizer"][0] == len(weights(tiny.tokenizer())) and rows["tokens of a clip"][0] == 79
    assert rows["tokens of a clip"][1].startswith("1 x 64 + 3 x 4")
    assert rows["per-frame tokens would be"][0] == 4 * 65 - 1
    assert rows["weights, gradients and Adam, MiB"][0] == pytest.approx(16 * total / 2**20)
    config = tiny.config()
    config.data.size_px = None
    assert job.zoo_resolution(config) == 32
    config.data.name = "bridge"
    assert job.zoo_resolution(config) == 64


def test_stages_are_planned_with_their_own_steps_batches_and_actions():
    config = tiny.config(precision="bf16")
    tok = config.optim.tokenizer
    tok.num_steps, tok.batch_size, tok.micro_batch_size = 7, 6, 3
    config.optim.transformer = TransformerOptim(5, 8, 4, True, sharding="fsdp", cached_clips=10)
    config.data.frame_step = 3
    first, second = footprint.stages(config)
    assert (first.name, first.num_steps, first.batch_size, first.micro_batch_size) == ("tokenizer", 7, 6, 3)
    assert (second.name, second.num_steps, second.batch_size, second.micro_batch_size) == ("transformer", 5, 8, 4)
    assert first.precision == second.precision == "bf16" and second.sharded and second.checkpointing
    assert not first.sharded and not first.checkpointing
    assert second.cache_bytes == 10 * (8 * 79 + 4 * 4 * (3 * 2 + 1)) and not second.notes
    config.optim.transformer.num_steps = 0
    assert [one.name for one in footprint.stages(config)] == ["tokenizer"]


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_cost_of_codes_that_gradients_do_not_move_is_not_theirs(kind):
    config = tiny.config()
    config.codebook.kind = kind
    trained = footprint._tokenizer(config).trained
    books = [value.requires_grad for name, value in trained.named_parameters() if "quantize.embedding" in name]
    assert books == [kind == "gradient"] * 2


def test_tokens_of_clips_are_counted_from_the_context_on(tmp_path):
    found = measure_tokens(Setting(tiny.world(), tiny.clips(), tiny.config(num_frames=6), Run(tmp_path, tiny.config())))
    assert found["own"] == {"length": 64 + 5 * 5, "reduction": (6 * 65 - 1) / (64 + 5 * 5)}
    assert found["robonet"]["length"] == 2 * 257 - 1 + 10 * 17


def test_weights_of_a_measure_are_looked_for_where_it_is_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(job.PLIPS, "load", lambda *_: asked.append(1))
    monkeypatch.setattr(job, "make_distance", lambda *_: None)
    for stage, perceptual, times in (("measure", True, 1), ("measure", False, 0), ("tokenizer", True, 0)):
        config = tiny.config(stage=stage)
        config.measure.perceptual = perceptual
        asked.clear()
        job._check_sources(config)
        assert len(asked) == times, (stage, perceptual)
