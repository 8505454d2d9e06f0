"""What is handed on in iVideoGPT's stages: actions' units, the objective, bytes of a cache; pictures; driven worlds."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ivideogpt import tiny
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.errors import UserError
from toolkit.ivideogpt import footprint, job
from toolkit.ivideogpt import measure as measures
from toolkit.ivideogpt.build import check_cache
from toolkit.ivideogpt.config import Measure, TokenizerLoss, TransformerOptim
from toolkit.ivideogpt.control.env import action_range
from toolkit.ivideogpt.control.games import Game
from toolkit.ivideogpt.film import film_strip, save_gif
from toolkit.ivideogpt.footprint import _cache_bytes
from toolkit.ivideogpt.measure import long
from toolkit.ivideogpt.measure.setting import Setting
from toolkit.ivideogpt.measure.tracking import TRACKED
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path, tiny.config())
    made.record["metrics"] = {}
    return made


@pytest.mark.parametrize("knows_units", [True, False])
def test_actions_are_normalised_for_a_transformer_that_does_not_know_their_units(run, monkeypatch, knows_units):
    world, told = tiny.world(), []

    def train(transformer, tokenizer, *_, normalised):
        told.append((normalised, transformer.config.tokenizer_fingerprint == tokenizer.fingerprint()))
        return transformer

    monkeypatch.setattr(job, "start_transformer", lambda *_: (world.transformer, knows_units))
    monkeypatch.setattr(job, "train_transformer", train)
    world.tokenizer.save_pretrained(run.dir / "model" / "tokenizer")
    job._train_transformer(run, tiny.config(), tiny.clips(), None)
    assert told == [(not knows_units, True)]  # and it speaks of this tokenizer's ids from here on
    assert run.record["parameters"]["transformer"] == sum(one.numel() for one in world.transformer.parameters())


def test_a_sweep_looks_for_the_largest_psnr_of_predicted_frames():
    assert job._objective({"prediction.psnr.predicted": 21.5, "prediction.psnr.copy_last": 9}) == -21.5
    assert job._objective({}) is None


def test_what_planning_found_stays_beside_the_measures(run, monkeypatch):
    run.record["metrics"] = {"plan.success.cem": 0.5, "tokens.own.length": 1.0}
    monkeypatch.setitem(measures.MEASURES, "tokens", lambda setting: {"own": {"length": 2}})
    measures.measure(tiny.world(), tiny.clips(), tiny.config(measure=Measure(names=["tokens"])), run)
    assert run.record["metrics"] == {"plan.success.cem": 0.5, "tokens.own.length": 2}


def test_a_cache_of_tokens_holds_whole_numbers_of_eight_bytes_and_rows_of_four():
    """Clips of 4 frames: 64 tokens of the context and its slot, 3 times 4 and a slot, less one: 79. Rows of two
    numbers and a reward for each frame."""
    config = tiny.config()
    assert _cache_bytes(config, 2) == 0
    config.optim.transformer = TransformerOptim(cached_clips=10)
    assert _cache_bytes(config, 2) == 10 * (8 * 79 + 4 * 4 * 3)
    config.reward_head = False
    assert _cache_bytes(config, 2) == 10 * (8 * 79 + 4 * 4 * 2)


def test_more_cached_clips_than_memory_holds_are_refused_before_the_tokenizer_is_trained(monkeypatch):
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: 10 * (8 * 79 + 4 * 4 * 3))
    monkeypatch.setattr(job, "train_tokenizer", lambda *_: pytest.fail("was trained"))
    config = tiny.config()
    config.optim.transformer.cached_clips = 11
    with pytest.raises(UserError, match=r"^optim\.transformer\.cached_clips=11: .*; give at most 10,"):
        job._train_tokenizer(None, config, tiny.clips(), None)
    config.optim.transformer.cached_clips = 10
    check_cache(config, tiny.tokenizer(), tiny.clips())


def test_losses_have_the_releases_weights():
    """Appendix A.2: equal weights; the generator's term 0.8 times that of balanced gradients."""
    loss = TokenizerLoss()
    assert (loss.perceptual_weight, loss.commitment, loss.gan_weight) == (1.0, 1.0, 0.8)
    assert loss.reconstruction == "l1" and loss.motion_weight == loss.contrast_weight == 0


def test_the_cost_of_a_discriminator_is_of_its_own_step_too(monkeypatch):
    """Reconstructions and true frames, neither of which sends a gradient to the tokenizer."""
    judged = []
    note = lambda judge, images, sign: judged.append((images.requires_grad, sign)) or 0  # noqa: E731
    monkeypatch.setattr(footprint, "hinge", note)
    config = tiny.config()
    config.tokenizer_loss.gan, config.tokenizer_loss.gan_hidden, config.tokenizer_loss.gan_depth = True, 8, 1
    made = footprint._tokenizer(config)
    assert made.loss(1).requires_grad and judged == [(False, -1), (False, 1)]
    names = {name.partition(".")[0] for name, _ in made.trained.named_parameters()}
    assert names == {"0", "1"}  # the discriminator is trained beside it


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_imagination_stands_below_the_frames_that_it_foretells(tmp_path):
    """Four true frames, two imagined: these stand in the last two columns. Labels are 12 pixels high, gaps 2."""
    grey = lambda num, value: np.full((1, num, 4, 4, 3), value, np.uint8)  # noqa: E731
    strip = film_strip({"true": grey(4, 90), "imagined": grey(2, 30)}, 0, 2)
    columns = [slice(10 * n, 10 * n + 8) for n in range(4)]
    top = 2 * 12 + 8 + 2
    assert [strip[12:20, one].mean() for one in columns] == [90] * 4
    assert [strip[top : top + 8, one].mean() for one in columns] == [255, 255, 30, 30]
    odd = film_strip({"one": np.full((1, 1, 5, 7, 3), 90, np.uint8)}, 0, 1)  # a white line beside and below
    assert odd.shape == (20, 8, 3) and (odd[12:17, :7] == 90).all() and (odd[12:, 7] == 255).all()
    save_gif(tmp_path / "a.gif", np.stack([strip, 255 - strip]), 8)
    with Image.open(tmp_path / "a.gif") as picture:
        assert abs(picture.info["duration"] - 125) <= 5  # in hundredths of a second


# -- worlds that are driven --------------------------------------------------------------------------------------------


def push_sprite():
    return PushSpriteEnv(tiny.SIZE)


def test_a_driven_world_is_imagined_by_its_own_seed():
    game = Game(tiny.world(), "push_sprite", push_sprite, None)
    game.reset(3, 11)
    assert game.memories[0][0].seeds.tolist() == [11] and game.start == 3


def test_of_a_choice_what_is_carried_out_is_remembered_and_run_again():
    plain = tiny.world()
    game = Game(WorldModel(plain.tokenizer, plain.transformer, discrete=2), "push_sprite", push_sprite, None)
    game.reset(3, 1)
    game.step([0.2, 0.9])
    assert [row.tolist() for row in game.taken] == [[0, 1]]
    assert np.array_equal(game.fork().env.step(np.zeros(2, np.float32))[0], game.env.step(np.zeros(2, np.float32))[0])


def test_a_goal_is_what_as_many_steps_as_one_context_imagines_lead_to():
    plain = tiny.world(context_length=2, positions=200)
    world = WorldModel(plain.tokenizer, plain.transformer, [-1, -1], [1, 1], True)
    game = Game(world, "push_sprite", push_sprite, None)
    game.reset(5, 0)
    env, (low, high) = push_sprite(), action_range(game.world)
    action = np.random.default_rng(derive(5, "goal")).uniform(low, high).astype(np.float32)
    env.reset(seed=5)
    seen = [env.step(action)[0] for _ in range(game.world.spec.max_future)]
    assert len(seen) > 3 and np.array_equal(game.goal, seen[-1]) and not np.array_equal(seen[0], seen[-1])


# -- long roll-outs ----------------------------------------------------------------------------------------------------


def test_what_stays_the_same_is_the_last_frame_of_the_context(run, monkeypatch):
    config = tiny.config(context_length=2)
    setting = Setting(None, tiny.clips(), config, run)
    frames = torch.rand(3, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(long, "_episodes", lambda *_: (frames, torch.zeros(3, 4, 2)))
    monkeypatch.setattr(Setting, "imagine", lambda self, context, *_, **__: (frames[:, 2:], None))
    found = long.measure_long(setting)
    error = (frames[:, 1:2] - frames[:, 2:]).square().mean((-1, -2, -3))
    assert found["psnr.copied"] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-5)
    assert found["psnr.copied.step_1"] == pytest.approx(float((-10 * error[:, 0].log10()).mean()), rel=1e-5)
    assert found["psnr.imagined"] == pytest.approx(50)


def test_a_thing_that_is_hidden_is_not_seen_although_it_is_where_it_should_be():
    """Its usual mass is the largest of its row: an eighth of it is below the quarter that counts as seen."""
    color = TRACKED["push_sprite"]["agent"]

    def frame(width):
        made = torch.full((3, 32, 32), 0.5)
        made[:, 10:14, 10 : 10 + width] = torch.tensor(color.rgb).view(3, 1, 1)
        return made

    true = torch.stack([frame(8), frame(1)])[None]
    assert long.near(true, true, color).tolist() == [[1, 0]]
