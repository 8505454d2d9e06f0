"""The push-sprite simulator: physics, pictures, and that a world is a function of its seed and actions alone."""

import numpy as np

from toolkit.data.episodes.push_sprite import AGENT_RADIUS, BLOCK_HALF, SPEED, PushSprite, record, replay


def held(sim, action, num_steps):
    for _ in range(num_steps):
        sim.step(np.tile(np.float32(action), (len(sim.world.agent), 1)))


def test_actions_move_the_disc_by_speed_and_walls_stop_it():
    sim = PushSprite(32)
    sim.reset([3])
    sim.place(np.float32([[0.3, 0.3]]), np.float32([[0.8, 0.8]]))
    held(sim, [1, -0.5], 1)
    assert np.allclose(sim.world.agent, [[0.3 + SPEED, 0.3 - SPEED / 2]], atol=1e-6)
    held(sim, [0, -1], 20)
    assert np.allclose(sim.world.agent[0, 1], AGENT_RADIUS)
    assert np.allclose(sim.world.block, [[0.8, 0.8]])


def test_the_block_is_pushed_on_contact_never_overlapped_and_holds_at_a_wall():
    sim = PushSprite(32)
    sim.reset([3])
    sim.place(np.float32([[0.2, 0.5]]), np.float32([[0.55, 0.5]]))
    held(sim, [1, 0], 30)
    assert np.allclose(sim.world.block, [[1 - BLOCK_HALF, 0.5]], atol=1e-5)
    assert np.allclose(sim.world.agent, [[1 - 2 * BLOCK_HALF - AGENT_RADIUS, 0.5]], atol=1e-5)
    rng = np.random.default_rng(0)
    sim.reset(range(50))
    for _ in range(40):
        sim.step(rng.uniform(-1, 1, (50, 2)).astype(np.float32))
        assert np.abs(sim._overlap()).max() < 2e-3  # where both are held by walls a sliver may stay
        for places, margin in ((sim.world.agent, AGENT_RADIUS), (sim.world.block, BLOCK_HALF)):
            assert (places >= margin - 1e-6).all() and (places <= 1 - margin + 1e-6).all()


def test_reward_is_minus_the_distance_to_the_goal():
    sim = PushSprite(32)
    sim.reset([1])
    sim.place(sim.world.agent, sim.world.goal.copy())
    assert sim.distance()[0] == 0
    sim.place(np.float32([[0.14, 0.14]]), sim.world.goal + np.float32([[0.1, 0]]))
    assert np.allclose(sim.step(np.zeros((1, 2)))[1], -0.1, atol=1e-6)


def test_an_episode_is_a_function_of_its_seed_alone_in_any_batch():
    sim = PushSprite(16)
    together = record(sim, [5, 6, 7], 6)
    alone = record(PushSprite(16), [6], 6)
    for name in ("frames", "actions", "rewards", "positions"):
        assert (getattr(together, name)[1] == getattr(alone, name)[0]).all(), name
    assert len({frame.tobytes() for frame in together.frames[:, 0]}) == 3


def test_replaying_the_actions_gives_the_recording_and_other_actions_another_future():
    sim = PushSprite(16)
    made = record(sim, [5, 6], 6)
    again = replay(sim, [5, 6], made.actions)
    assert (again.frames == made.frames).all() and np.allclose(again.rewards, made.rewards)
    other = replay(sim, [5, 6], -made.actions)
    assert (other.frames[:, 0] == made.frames[:, 0]).all() and (other.frames[:, -1] != made.frames[:, -1]).any()


def test_sprites_are_drawn_where_they_are():
    sim = PushSprite(64, num_distractors=0)
    sim.reset([2])
    frame = sim.place(np.float32([[0.25, 0.75]]), np.float32([[0.75, 0.25]]))[0].astype(int)
    assert frame.shape == (64, 64, 3) and frame[48, 16, 0] > 200 and frame[48, 16, 2] < 80  # row y, column x
    assert frame[16, 48, 2] > 200 and frame[16, 48, 0] < 80


def test_recorded_worlds_are_pushed_around():
    made = record(PushSprite(16), range(40), 8)
    moved = np.abs(made.positions[:, -1, 1] - made.positions[:, 0, 1]).max(-1)
    assert (moved > 0.02).mean() > 0.5
    assert np.abs(made.actions).max() <= 1 and made.actions.std() > 0.3
