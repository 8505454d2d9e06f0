"""One imagined world of ``toolkit play``: what is drawn, ended, bounded, and shown beside the true one."""

import json

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.data.episodes.episode import Episode, write_episode
from toolkit.errors import UserError
from toolkit.ivideogpt.control.games import MOST_MEMORIES, Game, Games, make_game
from toolkit.ivideogpt.measure.tracking import TRACKED, locate
from toolkit.ivideogpt.rollout import imagine
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling


def push_sprite():
    return PushSpriteEnv(tiny.SIZE)


def test_worlds_are_bounded_and_their_simulators_closed():
    closed = []

    class Env(PushSpriteEnv):
        def close(self):
            closed.append(self)

    kind = Game(tiny.world(), "push_sprite", lambda: Env(tiny.SIZE), None)
    games = Games([kind], most=2)
    words = [games.open(kind.another()) for _ in range(4)]
    assert len(closed) == 2 and len(games._open) == 2 and len({*words}) == 4
    games.game(words[2])
    games.open(kind.another())
    assert games.game(words[2]) and words[3] not in games._open


def test_a_true_episode_that_is_over_is_said_and_not_stepped_on():
    class Ends(PushSpriteEnv):
        def step(self, action):
            frame, reward, _, _, info = super().step(action)
            return frame, reward, True, False, info

    game = Game(tiny.world(), None, lambda: Ends(tiny.SIZE), None)
    game.reset(0, 0)
    first, second = game.step([1, 0]), game.step([1, 0])
    assert first["ended"] and first["truth"] and second["ended"] and second["truth"] is None and second["frame"]
    assert game.undo()["truth"] == first["truth"] and not game.undo()["ended"]


def test_the_model_that_ships_obeys_the_arrow_keys():
    game = make_game(None)
    info, world, red = game.info(), game.world, TRACKED["push_sprite"]["agent"]
    starts = (
        torch.from_numpy(np.stack([game.env.reset(seed=seed)[0] for seed in range(12)])).movedim(-1, 1)[:, None] / 255
    )
    ends = {}
    for axis, key in enumerate(("right", "down")):
        for sign in (-1, 1):
            action = torch.zeros(len(starts), 3, 2)
            action[..., info[key]] = sign
            frames, _ = imagine(world, starts, action, 3, range(len(starts)), None)
            ends[axis, sign] = locate(frames[:, -1], red)[0].mean(0)
    for axis in (0, 1):
        moved = ends[axis, 1] - ends[axis, -1]  # walls stop some; nothing stops: 6 x 0.11
        assert moved[axis] > 0.3 and moved[1 - axis].abs() < 0.1
    assert info["truth"] and game.reset(3, 0)["frame"] and game.step([1.0, 0.0])["frame"]


def test_a_step_back_reaches_over_renewed_contexts_as_far_as_memories_are_kept():
    game = Game(tiny.world(), "push_sprite", push_sprite, None)
    seen = [game.reset(3, 1)]
    while sum(bool(one.get("recontextualised")) for one in seen) < MOST_MEMORIES:
        seen.append(game.step([1, -1]))
    seen.append(game.step([1, -1]))
    twin = game.fork()
    oldest = next(t for t, one in enumerate(seen) if one.get("recontextualised"))  # what came before has made room
    for t in range(len(seen) - 2, oldest - 1, -1):
        assert game.undo() == seen[t]
    with pytest.raises(UserError, match="what came before is not kept"):
        game.undo()
    assert [game.step([1, -1]) for _ in seen[oldest + 1 :]] == seen[oldest + 1 :]  # the same luck ahead
    assert twin.undo() == seen[-2]


def test_of_a_choice_the_largest_entry_is_acted_in_both_worlds():
    plain = tiny.world()
    game = Game(WorldModel(plain.tokenizer, plain.transformer, discrete=2), None, push_sprite, None)
    assert game.info()["discrete"] == 2
    seen = []
    for action in ([0.2, 0.1], [1.0, 0.0], [0.0, 1.0]):
        game.reset(3, 1)
        seen.append(game.step(action))
    assert seen[0] == seen[1] != seen[2] and seen[0]["truth"] != seen[2]["truth"]


def test_play_draws_as_the_model_says():
    plain, own = tiny.world(), Sampling(temperature=0.01, top_k=1)
    told = plain.begin(PushSpriteEnv(tiny.SIZE).reset(seed=3)[0][None, None], [1])
    expected = plain.step(told, np.float32([[1, 0]]), own)[1]
    game = Game(WorldModel(plain.tokenizer, plain.transformer, sampling=own), None, push_sprite, None)
    game.reset(3, 1)
    assert game.step([1, 0])["entropy"] == float(expected.entropy[0])
    assert (game.memories[-1][-1].observation == expected.frame).all()
    assert make_game(None).world.sampling == Sampling(temperature=0.5)


def test_a_gymnasium_environment_that_data_came_from_is_driven_beside(tmp_path):
    pytest.importorskip("pygame", reason="gymnasium's pictures of CartPole need pygame")
    plain = tiny.world()
    WorldModel(plain.tokenizer, plain.transformer, discrete=2).save_pretrained(tmp_path)
    facts = {"command": "train-ivideogpt", "status": "done", "config": {}, "data": {"env": "CartPole-v1"}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    game = make_game(tmp_path)
    assert game.reset(0, 0)["truth"] and game.step([0, 1])["truth"]


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("push_sprite", {"texture": "much"}, "texture=much: expected a value such as 0.0"),
        ("push_sprite", {"texture": 7.0}, "texture=7.0: must be at most 1"),
        ("push_sprite", {"agent_shape": "disk"}, "agent_shape=disk"),
        ("push_sprite", {"num_distractors": 10**9}, "num_distractors=1000000000: must be at most 64"),
        ("push_sprite", {"sim": 1}, "expected texture, num_distractors, random_goal, agent_shape"),
        ("push_sprite", [1], "expected texture"),
        ("CartPole-v1", {"entry_point": "os:system"}, "expected none"),
    ],
)
def test_options_of_a_simulator_in_a_run_folder_are_checked(tmp_path, env, options, message):
    tiny.world().save_pretrained(tmp_path)
    facts = {"command": "train-ivideogpt", "status": "done", "config": {}, "data": {"env": env, "env_options": options}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=message):
        make_game(tmp_path)


def test_a_goal_conditioned_model_is_shown_a_goal_first(tmp_path):
    plain = tiny.world(context_length=2, positions=200)
    world = WorldModel(plain.tokenizer, plain.transformer, goal_conditioned=True)
    game = Game(world, "push_sprite", push_sprite, None)
    begun = game.reset(5, 0)
    goal, now = game.memories[0][0].recent[0].numpy()
    assert begun["goal"] and begun["goal"] != begun["frame"] == begun["truth"]
    assert (now == push_sprite().reset(seed=5)[0]).all() and (goal != now).any()
    assert game.step([1, 0])["frame"] and (game.memories[-1][-1].recent[0, 0].numpy() == goal).all()
    world.save_pretrained(tmp_path / "world")
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((16, 16, 3), np.uint8)
    write_episode(tmp_path / "episodes" / "a.npz", Episode(frames))
    given = make_game(tmp_path / "world", tmp_path / "episodes")
    assert given.starts[0, :, 0, 0, 0].tolist() == [3, 0] and given.reset(0, 0)["goal"]
