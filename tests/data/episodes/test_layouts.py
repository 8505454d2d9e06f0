"""Episodes as people have them -> npz: what went in comes out, rows at the frame they leave, or a line says why."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.episodes import makers
from tests.data.episodes.makers import arriving, known
from tests.data.episodes.test_convert import png, write_records
from toolkit.data.episodes.convert import convert, hint
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.episodes.layouts.base import Options, files_below
from toolkit.data.episodes.record import read_manifest
from toolkit.errors import UserError

EPISODES = [known(5, seed=1), known(4, seed=2)]


def converted(layout, source, dest, **options):
    """The episodes that were written, in the order of their names, as dicts of arrays."""
    done, problems = convert(layout, source, dest, Options(**options))
    assert problems == []
    files = sorted(dest.rglob("*.npz"))
    assert len(files) == done
    return [dict(np.load(path)) for path in files]


def assert_same(found, episodes, last_is_known=True):
    """Frames, actions and rewards are those that went in; the row of the last frame only where the layout has it."""
    assert len(found) == len(episodes)
    for one, (image, action, reward) in zip(found, episodes, strict=True):
        stop = len(image) if last_is_known else len(image) - 1
        assert (one["image"] == image).all()
        assert np.allclose(one["action"][:stop], action[:stop]) and not one["action"][stop:].any()
        assert np.allclose(one["reward"][:stop], reward[:stop]) and not one["reward"][stop:].any()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("embedded", [False, True])
def test_lerobot(tmp_path, version, embedded):
    pytest.importorskip("pyarrow", reason="the extra formats is not installed")
    source = makers.lerobot(tmp_path / "in", EPISODES, version, embedded=embedded)
    found = converted("lerobot", source, tmp_path / "out", image_key="top")
    assert_same(found, EPISODES)
    assert found[0]["terminal"].tolist() == [False] * 4 + [True]


def test_aloha(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    for number, episode in enumerate(EPISODES):
        makers.aloha(tmp_path / "in" / f"episode_{number}.hdf5", episode)
    found = converted("aloha", tmp_path / "in", tmp_path / "out")
    for one, (image, action, _) in zip(found, EPISODES, strict=True):
        assert (one["image"] == image).all() and np.allclose(one["action"], action) and "reward" not in one
    assert hint(tmp_path / "in").startswith("it looks like aloha: ")
    both = makers.aloha(tmp_path / "both.hdf5", EPISODES[0], cameras=("top", "left_wrist"))
    with pytest.raises(UserError, match="has 2 cameras; choose --image-key among left_wrist, top"):
        convert("aloha", both, tmp_path / "x", Options())
    other = makers.robomimic(tmp_path / "demo.hdf5", EPISODES)
    assert convert("aloha", other, tmp_path / "x", Options())[1] == [
        f"{other}: no 'observations/images' in it (found data)"
    ]


def test_pictures_that_opencv_wrote_as_if_they_were_bgr_are_turned_back(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    image = np.zeros((3, 16, 16, 3), np.uint8)
    image[..., 0], image[1, ..., 1] = 200, 90  # red, and one frame of orange

    def jpeg(frame):
        buffer = io.BytesIO()
        Image.fromarray(frame[..., ::-1]).save(buffer, "JPEG", quality=95)  # what a viewer shows is blue
        return buffer.getvalue()

    path = makers.aloha(tmp_path / "episode_0.hdf5", (image, np.zeros((3, 2)), None), encode=jpeg)
    (found,) = converted("aloha", path, tmp_path / "out")
    assert abs(found["image"].astype(int) - image).max() <= 4


def test_robomimic(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    path = makers.robomimic(tmp_path / "in" / "image.hdf5", EPISODES, {"train": ["demo_1"], "valid": ["demo_0"]})
    found = converted("robomimic", path, tmp_path / "out")
    assert_same(found, EPISODES[::-1])  # train/ comes first
    names = [path.relative_to(tmp_path / "out").as_posix() for path in sorted((tmp_path / "out").rglob("*.npz"))]
    assert names == ["train/image_demo_1.npz", "valid/image_demo_0.npz"]
    assert_same(converted("robomimic", tmp_path / "in", tmp_path / "more", most=1), EPISODES[:1])
    two = makers.robomimic(tmp_path / "two.hdf5", EPISODES, cameras=("agentview_image", "robot0_eye_in_hand_image"))
    with pytest.raises(UserError, match="has 2 cameras; choose --image-key among agentview_image, robot0"):
        convert("robomimic", two, tmp_path / "x", Options())
    with pytest.raises(UserError, match=r"no camera 'agentview'; did you mean 'agentview_image'"):
        convert("robomimic", two, tmp_path / "x", Options(image_key="agentview"))
    assert_same(converted("robomimic", two, tmp_path / "y", image_key="robot0_eye_in_hand_image"), EPISODES)
    states = makers.robomimic(tmp_path / "low_dim.hdf5", EPISODES, cameras=())
    with pytest.raises(UserError, match="no pictures in it"):
        convert("robomimic", states, tmp_path / "x", Options())
    assert not (tmp_path / "x").exists()


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -2.0], "high": [1.0, 2.0]}


@pytest.mark.parametrize("key", [None, "pixels"])
def test_minari(tmp_path, key):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    source = makers.minari(tmp_path / "in", EPISODES, BOX, key)
    found = converted("minari", source, tmp_path / "out")
    assert_same(found, EPISODES, last_is_known=False)
    assert found[1]["terminal"].tolist() == [False, False, True, False]  # the move that ended it, and none after
    facts = read_manifest(tmp_path / "out")
    assert facts["action_low"] == [-1, -2] and facts["action_high"] == [1, 2] and "discrete" not in facts


@pytest.mark.parametrize("key", [None, "pixels"])
@pytest.mark.parametrize("alike", [True, False])
def test_minari_keeps_larger_pictures_as_jpeg_files(tmp_path, key, alike):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    shades = np.uint8([30, 60, 90, 120, 150])[:, None, None, None] * np.ones((40, 48, 3), np.uint8)
    _, action, reward = EPISODES[0]

    def jpeg(frame):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG")
        return buffer.getvalue() + bytes(2000 - buffer.tell() if alike else 0)

    source = makers.minari(tmp_path / "in", [(shades, action, reward)], BOX, key, jpeg)
    [found] = converted("minari", source, tmp_path / "out")
    assert found["image"].shape == shades.shape and np.abs(found["image"].astype(int) - shades).max() <= 12
    assert np.allclose(found["action"][:4], action[:4])


def test_minari_choices_are_one_hot(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    chosen = [(image, np.arange(len(image)) % 3 + 10, reward) for image, _, reward in EPISODES]
    source = makers.minari(tmp_path / "in", chosen, {"type": "Discrete", "dtype": "int64", "start": 10, "n": 4})
    found = converted("minari", source, tmp_path / "out")
    assert found[1]["action"].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert read_manifest(tmp_path / "out")["discrete"] == 4
    beyond = makers.minari(tmp_path / "beyond", chosen, {"type": "Discrete", "start": 0, "n": 4})
    _, problems = convert("minari", beyond, tmp_path / "x", Options())
    assert "episode_0: action 10..12, expected choices 0..3" in problems[0]
    other = makers.minari(tmp_path / "dict", chosen, {"type": "Dict", "subspaces": {}})
    with pytest.raises(UserError, match="actions are a Dict space"):
        convert("minari", other, tmp_path / "x", Options())
    (tmp_path / "arrow" / "data").mkdir(parents=True)
    (tmp_path / "arrow" / "data" / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match="data_format arrow is not read"):
        convert("minari", tmp_path / "arrow", tmp_path / "x", Options())


def test_d4rl(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    found = converted("d4rl", makers.d4rl(tmp_path / "a.hdf5", EPISODES), tmp_path / "out")
    assert_same(found, EPISODES)
    assert found[0]["terminal"].tolist() == [False] * 4 + [True] and not found[1]["terminal"].any()
    with pytest.raises(UserError, match=r"no 'timeouts' in it .* nobody knows where episodes were cut"):
        convert("d4rl", makers.d4rl(tmp_path / "b.hdf5", EPISODES, timeouts=None), tmp_path / "x", Options())
    states = makers.d4rl(tmp_path / "c.hdf5", EPISODES, observations=np.zeros((9, 17)))
    with pytest.raises(UserError, match=r"'observations' are no pictures \(rows of shape \[17\]\)"):
        convert("d4rl", states, tmp_path / "x", Options())
    chosen = makers.d4rl(tmp_path / "d.hdf5", EPISODES, actions=np.array([0, 1, 2, 0, 1, 1, 1, 2, 0]))
    with pytest.raises(UserError, match=r"actions are whole numbers 0\.\.2; give --num-actions N"):
        convert("d4rl", chosen, tmp_path / "x", Options())
    rows = converted("d4rl", chosen, tmp_path / "y", num_actions=3)[0]["action"]
    assert rows.argmax(1).tolist() == [0, 1, 2, 0, 1] and read_manifest(tmp_path / "y")["discrete"] == 3
    rows = converted("d4rl", chosen, tmp_path / "z", num_actions=0)[0]["action"]
    assert rows.tolist() == [[0], [1], [2], [0], [1]] and "discrete" not in read_manifest(tmp_path / "z")


def test_vd4rl_rows_led_to_their_frames(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    found = converted("d4rl", makers.vd4rl(tmp_path / "a.hdf5", EPISODES), tmp_path / "out")
    assert_same(found, EPISODES, last_is_known=False)


def dreamer(path, image, action, reward, /, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"image": image, "action": arriving(action), "reward": arriving(reward)} | more
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})


def test_dreamer_rows_led_to_their_frames(tmp_path):
    image, action, reward = EPISODES[0]
    dreamer(tmp_path / "in" / "20260101T000000-aa-4.npz", *EPISODES[0], is_terminal=np.arange(5) == 4)
    found = converted("dreamer", tmp_path / "in", tmp_path / "out")
    assert_same(found, EPISODES[:1], last_is_known=False)
    assert found[0]["terminal"].tolist() == [False, False, False, True, False]
    direct = read_episode(tmp_path / "in" / "20260101T000000-aa-4.npz", EpisodeSpec(convention="arrival"))
    assert (direct.action == found[0]["action"]).all() and (direct.reward == found[0]["reward"]).all()
    dreamer(tmp_path / "departs" / "a.npz", image, action, reward, action=action)
    _, problems = convert("dreamer", tmp_path / "departs", tmp_path / "x", Options())
    assert "the first action is not zero" in problems[0] and "--convention departure" in problems[0]


def test_dreamer_choices_and_several_episodes_in_a_file(tmp_path):
    image, _, reward = known(6)
    choices = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    choices[[0, 4]] = 0  # nothing led to the first frames of two episodes
    reward = np.array([0, 1, 2, 3, 0, 5], np.float32)
    first = np.array([1, 0, 0, 0, 1, 0], bool)
    dreamer(tmp_path / "in" / "a.npz", image, choices, reward, action=choices, reward=reward, is_first=first)
    with pytest.raises(UserError, match="look like choices, one-hot; give --num-actions 3 if so, 0 if not"):
        convert("dreamer", tmp_path / "in", tmp_path / "x", Options())
    one, two = converted("dreamer", tmp_path / "in", tmp_path / "out", num_actions=3)
    assert one["action"].argmax(1)[:3].tolist() == [1, 2, 0] and two["action"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert one["reward"].tolist() == [1, 2, 3, 0] and two["reward"].tolist() == [5, 0]
    assert read_manifest(tmp_path / "out")["discrete"] == 3


def test_dreamer_3_stores_the_action_that_is_taken_beside_the_reward_that_led_here(tmp_path):
    image, action, reward = known(6)
    first = np.array([0, 0, 1, 0, 0, 0], bool)  # the chunk begins inside an episode
    stored = {"action": action, "reward": arriving(reward), "is_first": first}
    stored["reward"][0], stored["reward"][2] = 7, 0
    dreamer(tmp_path / "in" / "a.npz", image, action, reward, stepid=np.zeros((6, 20), np.uint8), **stored)
    one, two = converted("dreamer", tmp_path / "in", tmp_path / "out")
    assert np.allclose(one["action"], action[:2]) and np.allclose(two["action"], action[2:])
    assert np.allclose(one["reward"], [reward[0], 0]) and np.allclose(two["reward"], [*reward[2:5], 0])


def test_open_x_keeps_rewards_and_terminals_and_says_what_it_leaves(tmp_path, caplog):
    image, action, reward = known(4, actions=7)
    example = {
        "steps/observation/image": [png(one) for one in image],
        "steps/action": action.ravel(),
        "steps/reward": reward,
        "steps/is_terminal": [0, 0, 0, 1],
    }
    parts = {name: value for name, value in example.items() if name != "steps/action"}
    parts |= {"steps/action/world_vector": action[:, :3].ravel(), "steps/action/gripper": action[:, 3]}
    write_records(tmp_path / "in" / "x-train.tfrecord-00000-of-00001", [example, parts, parts])
    one, *others = converted("oxe", tmp_path / "in", tmp_path / "out")
    assert_same([one], [(image, action, reward)])
    assert one["terminal"].tolist() == [False, False, False, True]
    assert all("action" not in other and np.allclose(other["reward"], reward) for other in others)
    assert caplog.text.count("actions are of several parts (gripper, world_vector): none is taken") == 1
    torn = example | {"steps/action": action.ravel()[:-1]}
    write_records(tmp_path / "torn" / "x.tfrecord", [torn])
    _, problems = convert("oxe", tmp_path / "torn", tmp_path / "x", Options())
    assert "'steps/action' holds 27 numbers, expected some numbers for each of 4 frames" in problems[0]


def test_frames_are_resized_with_all_that_belongs_to_them(tmp_path):
    dreamer(tmp_path / "in" / "a.npz", *EPISODES[0])
    [one] = converted("dreamer", tmp_path / "in", tmp_path / "out", size_px=3)
    assert one["image"].shape == (5, 3, 3, 3) and np.allclose(one["reward"][:4], EPISODES[0][2][:4])


def test_grey_frames_become_three_equal_channels_and_stacks_are_refused(tmp_path):
    image, action, reward = EPISODES[0]
    dreamer(tmp_path / "in" / "a.npz", image[..., :1], action, reward)
    [one] = converted("dreamer", tmp_path / "in", tmp_path / "out")
    assert (one["image"] == image[..., :1]).all()
    dreamer(tmp_path / "stack" / "a.npz", np.zeros((5, 8, 8, 4), np.uint8), action, reward)
    with pytest.raises(UserError, match="no pictures in it"):
        convert("dreamer", tmp_path / "stack", tmp_path / "x", Options())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["lerobot", "robomimic", "minari", "d4rl", "dreamer"])
def test_what_was_converted_trains(tmp_path, monkeypatch, layout):
    import toolkit

    monkeypatch.chdir(tmp_path)
    episodes = [known(6, 16, 24, seed=number) for number in range(24)]
    space = {"type": "Discrete", "start": 0, "n": 3}
    chosen = [(image, np.arange(len(image)) % 3, reward) for image, _, reward in episodes]
    make = {
        "lerobot": lambda: makers.lerobot(tmp_path / "in", episodes, "v3.0"),
        "robomimic": lambda: makers.robomimic(tmp_path / "in" / "a.hdf5", episodes),
        "minari": lambda: makers.minari(tmp_path / "in", chosen, space),
        "d4rl": lambda: makers.d4rl(tmp_path / "a.hdf5", episodes),
        "dreamer": lambda: [dreamer(tmp_path / "in" / f"{n}.npz", *one) for n, one in enumerate(episodes)],
    }
    made = make[layout]()
    converted(layout, tmp_path / "in" if isinstance(made, list) else made, tmp_path / "out")
    steps = {"optim.tokenizer.num_steps": 4, "optim.transformer.num_steps": 4, "tokenizer_loss.gan_start_step": 2}
    words = [f"{key}={value}" for key, value in steps.items()]
    words += [
        "data=episodes_folder",
        "data.path=out",
        "data.size_px=16",
        "plan.num_episodes=0",
        "codebook.warmup_steps=1",
    ]
    run = toolkit.run("train-ivideogpt", "experiment=ivideogpt_smoke", *words, folder="run")
    assert np.isfinite(run.metrics["prediction.psnr.predicted"])
    assert toolkit.load("run").config["discrete"] == (3 if layout == "minari" else None)


def test_names_in_large_letters_are_found_and_hidden_ones_passed_over(tmp_path):
    for name in ("A.HDF5", "b.h5", "._b.h5", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in files_below(tmp_path, "*.hdf5", "*.h5", hint="")] == ["A.HDF5", "b.h5"]


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_pictures_of_floats_and_of_channels_first_are_frames(tmp_path, last):
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")
    image, action, reward = EPISODES[0]
    shown = image if last else np.moveaxis(image, -1, 1)
    dreamer(tmp_path / "dreamer" / "a.npz", shown, action, reward)
    assert_same(converted("dreamer", tmp_path / "dreamer", tmp_path / "a"), EPISODES[:1], last_is_known=False)
    path = makers.robomimic(tmp_path / "demo.hdf5", [((shown / 255).astype(np.float32), action, reward)])
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/depth"] = np.ones((len(image), *image.shape[1:3], 1), np.float32)
    assert_same(converted("robomimic", path, tmp_path / "b"), EPISODES[:1])
