"""The push-sprite simulator: physics, pictures, and that a world is a function of its seed and actions alone."""

import numpy as np

from toolkit.data.episodes.push_sprite import AGENT_RADIUS, BLOCK_HALF, SPEED, PushSprite, next_actions, record, replay


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


def test_the_block_leaves_by_the_shortest_way():
    """Along the line to its nearest point from outside, by its nearest side where the disc's centre is inside."""
    sim = PushSprite(16)
    sim.reset(range(4))
    half, radius = BLOCK_HALF, AGENT_RADIUS
    offsets = np.float32([[half + 0.1, 0.05], [half + 0.03, -half - 0.04], [0.02, -0.06], [half + 0.2, 0]])
    sim.place(np.full((4, 2), 0.5, np.float32), 0.5 + offsets)
    corner = (radius / 0.05 - 1) * np.array([0.03, -0.04])
    wanted = [[radius - 0.1, 0], corner, [0, -(half + radius - 0.06)], [0, 0]]
    assert np.allclose(sim._overlap(), wanted, atol=1e-5)


def test_shapes_cover_their_areas_and_edges_fade_over_one_pixel():
    areas = {
        "disc": np.pi * AGENT_RADIUS**2,
        "square": (2 * AGENT_RADIUS) ** 2,
        "diamond": 2 * (1.2 * AGENT_RADIUS) ** 2,
    }
    for shape, area in areas.items():
        sim = PushSprite(128, agent_shape=shape)
        distance = sim.draw_agent(np.float32([[0.5, 0.5]]), AGENT_RADIUS)
        cover = sim._paint(np.zeros((1, 128, 128, 3), np.float32), distance, np.ones(3, np.float32))
        assert abs(cover[0, ..., 0].mean() - area) < 2e-3, shape
    edge = sim._paint(np.zeros((1, 1, 3), np.float32), np.float32([[0.25 / 128]]), np.float32([0.8, 0.4, 0]))
    assert np.allclose(edge[0, 0], [0.2, 0.1, 0], atol=1e-6)  # a quarter of a pixel outside: a quarter of it is covered


def test_the_goal_is_a_ring_in_the_middle_or_somewhere_and_backgrounds_are_plain_or_smooth():
    plain = PushSprite(64, num_distractors=0)
    plain.reset(range(30))
    assert (plain.world.goal == 0.5).all()
    still, distance = plain.world.still, np.linalg.norm(plain.grid - 0.5, axis=-1)
    on_ring = np.abs(distance - 0.15) < 0.04 - 1 / 64
    assert np.allclose(still[:, on_ring], [0.1, 0.8, 0.3], atol=1e-6)
    off = still[:, np.abs(distance - 0.15) > 0.04 + 1 / 64]
    assert np.ptp(off, axis=1).max() < 1e-6 and np.ptp(off[:, 0], axis=0).min() > 0.3  # plain, another in each world
    grey = off[:, 0].mean(-1)
    assert (grey > 0.5 - 0.38 - 1e-6).all() and (grey < 0.5 + 0.38 + 1e-6).all()
    somewhere = PushSprite(64, random_goal=True)
    somewhere.reset(range(150))
    reach = 0.8 * (0.5 - AGENT_RADIUS)
    apart = np.abs(somewhere.world.goal - 0.5)
    assert 0.95 * reach < apart.max() <= reach and np.abs(apart.mean() - reach / 2) < 0.02
    smooth = PushSprite(64, texture=1.0)._background(np.random.default_rng(0))
    for axis in (0, 1):  # linear within each half, by one amount in all colours
        for part in (smooth.take(range(32), axis), smooth.take(range(32, 64), axis)):
            assert np.abs(np.diff(part, 2, axis)).max() < 1e-5 < 1e-4 < np.abs(np.diff(part, axis=axis)).max()
        assert np.abs(np.diff(smooth, axis=axis)).max() < 0.6 / 32  # nor does it jump in the middle
    change = smooth - smooth[0, 0]
    assert np.allclose(change[..., 0], change[..., 1], atol=1e-5) and np.ptp(smooth) > 0.2


def test_recorded_actions_chase_the_block_half_of_the_time_and_wander_else():
    num = 4000
    agent, block = np.tile(np.float32([0.2, 0.5]), (num, 1)), np.tile(np.float32([0.6, 0.4]), (num, 1))
    previous = np.tile(np.float32([-0.2, 0.5]), (num, 1))
    rngs = [np.random.default_rng(seed) for seed in range(num)]
    made = next_actions(agent, block, previous, rngs)
    chases = np.array([np.random.default_rng(seed).random() < 0.5 for seed in range(num)])
    assert abs(chases.mean() - 0.5) < 0.03
    x, y = made[chases].T  # towards (1, -0.25), give or take 0.63, at most 1
    assert (
        x.min() > 0.37 - 1e-6
        and (x == 1).mean() > 0.45
        and abs(y.mean() + 0.25) < 0.03
        and abs(np.ptp(y) - 1.26) < 0.02
    )
    x, y = made[~chases].T  # (-0.14, 0.35), give or take 0.9
    assert abs(x.min() + 1) < 0.01 and abs(x.max() - 0.76) < 0.01 and abs(y.min() + 0.55) < 0.01 and y.max() == 1
