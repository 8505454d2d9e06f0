"""npz episodes: what is read, what is refused (in one line that names the file), and how folders are split."""

import io
import json
import re
import zipfile

import numpy as np
import pytest

from toolkit import data
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.episode import Episode, EpisodeSpec, read_episode, resize, write_episode
from toolkit.data.episodes.folder import read_folder
from toolkit.errors import UserError


def episode(num_frames=6, size=8, action_dim=2, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
    return Episode(
        image, rng.normal(size=(num_frames, action_dim)).astype(np.float32), np.zeros(num_frames, np.float32)
    )


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def refused(path, spec=None):
    with pytest.raises(UserError) as caught:
        read_episode(path, spec or EpisodeSpec())
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_written_and_read_back(tmp_path):
    made = episode()
    found = read_episode(write_episode(tmp_path / "a.npz", made), EpisodeSpec())
    assert (found.image == made.image).all() and (found.action == made.action).all() and (found.reward == 0).all()


def test_one_action_fewer_than_frames_gets_a_row_of_zeros(tmp_path):
    made = episode()
    path = save(tmp_path / "a.npz", image=made.image, action=made.action[:-1])
    assert (read_episode(path, EpisodeSpec()).action == np.concatenate([made.action[:-1], np.zeros((1, 2))])).all()


def test_integers_and_floats_become_bytes(tmp_path):
    image = episode().image
    for name, stored in (("int", image.astype(np.int64)), ("float", image / 255.0)):
        assert (read_episode(save(tmp_path / f"{name}.npz", image=stored), EpisodeSpec()).image == image).all()


def test_bad_files_are_refused_in_one_line(tmp_path):
    made = episode()
    whole = write_episode(tmp_path / "whole.npz", made).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(tmp_path / "cut.npz")
    damaged = bytearray(whole)
    damaged[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    assert "truncated or no npz" in refused(tmp_path / "damaged.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    refused(tmp_path / "empty.npz")
    (tmp_path / "text.npz").write_text("hello")
    refused(tmp_path / "text.npz")
    np.save(tmp_path / "bare.npy", made.image)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    refused(tmp_path / "bare.npz")
    assert "no such file" in refused(tmp_path / "absent.npz")


def test_bad_arrays_are_refused_in_one_line(tmp_path):
    made = episode()
    bad = np.array([{"a": 1}], dtype=object)
    assert "plain arrays" in refused(save(tmp_path / "object.npz", image=bad))
    assert "no array 'image'" in refused(save(tmp_path / "other.npz", frames=made.image))
    assert "expected frames" in refused(save(tmp_path / "grey.npz", image=made.image[..., 0]))
    assert "floats 0..1" in refused(save(tmp_path / "range.npz", image=made.image * 2.0))
    nan = (made.image / 255.0).copy()
    nan[0, 0, 0, 0] = np.nan
    assert "not finite" in refused(save(tmp_path / "nan.npz", image=nan))
    for kind in (np.complex64, "timedelta64[s]", bool):
        assert "finite numbers" in refused(save(tmp_path / "kind.npz", image=made.image.astype(kind)))
        odd = made.action.astype(kind)
        assert f"action is {odd.dtype}, expected finite" in refused(
            save(tmp_path / "kind.npz", image=made.image, action=odd)
        )
    action = made.action.copy()
    action[3, 1] = np.inf
    assert "action is inf at [3, 1]" in refused(save(tmp_path / "inf.npz", image=made.image, action=action))
    assert "expected 6 rows" in refused(save(tmp_path / "rows.npz", image=made.image, action=made.action[:2]))
    assert "expected [T, A]" in refused(save(tmp_path / "flat.npz", image=made.image, action=made.action[:, 0]))
    short = save(tmp_path / "short.npz", image=made.image)
    assert "6 frames, a clip needs 9" in refused(short, EpisodeSpec(least_frames=9))
    assert "no array 'action'" in refused(short, EpisodeSpec(needs_action=True))


def test_episodes_of_a_folder_must_be_alike_unless_bad_ones_are_left_out(tmp_path):
    files = [write_episode(tmp_path / f"{i}.npz", episode(seed=i)) for i in range(3)]
    files.append(write_episode(tmp_path / "big.npz", episode(size=10)))
    files.append(write_episode(tmp_path / "wide.npz", episode(action_dim=3)))
    with pytest.raises(UserError, match=r"big\.npz: frames are 10x10, those of .*0\.npz 8x8; set data\.size_px"):
        read_folder(files[:4], EpisodeSpec())
    with pytest.raises(
        UserError, match=r"wide\.npz: actions of 3 numbers, those of .*0\.npz have 2.*data\.skip_bad=true"
    ):
        read_folder([*files[:3], files[4]], EpisodeSpec())
    found, problems = read_folder(files, EpisodeSpec(), skip_bad=True)
    assert len(found) == 3 and len(problems) == 2 and found.action_dim == 2
    resized, _ = read_folder(files[:4], EpisodeSpec(size_px=4))
    assert resized.size_px == (4, 4) and len(resized) == 4


def test_large_folders_are_read_again_when_a_clip_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.data.episodes.folder.IN_MEMORY_BYTES", 0)
    files = [write_episode(tmp_path / f"{i}.npz", episode(seed=i)) for i in range(2)]
    found, _ = read_folder(files, EpisodeSpec())
    assert (found.read(1).image == episode(seed=1).image).all()


def test_of_very_large_folders_only_headers_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.data.episodes.folder.READ_WHOLLY_BYTES", 0)
    files = [write_episode(tmp_path / f"{i}.npz", episode(seed=i)) for i in range(2)]
    found, _ = read_folder(files, EpisodeSpec(size_px=4))
    assert found.lengths == [6, 6] and found.size_px == (4, 4) and found.action_dim == 2
    assert found.read(0).image.shape == (6, 4, 4, 3)
    bad = {"big": episode(size=10), "wide": episode(action_dim=3), "short": episode(num_frames=2)}
    files += [write_episode(tmp_path / f"{name}.npz", one) for name, one in bad.items()]
    (tmp_path / "cut.npz").write_bytes(files[0].read_bytes()[:100])
    _, problems = read_folder([*files, tmp_path / "cut.npz"], EpisodeSpec(least_frames=4), skip_bad=True)
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in problems] == [
        "big.npz",
        "wide.npz",
        "short.npz",
        "cut.npz",
    ]


def test_the_odd_file_is_left_out_and_not_the_others(tmp_path):
    """Whichever comes first; held-out files must be of the kind of training."""
    files = [write_episode(tmp_path / f"{i}.npz", episode(action_dim=3 if i == 0 else 2)) for i in range(4)]
    with pytest.raises(UserError, match=r"/0\.npz: actions of 3 numbers, those of .*1\.npz have 2"):
        read_folder(files, EpisodeSpec())
    train, problems = read_folder(files[1:], EpisodeSpec(), skip_bad=True)
    assert len(train) == 3 and not problems
    with pytest.raises(UserError, match=r"/0\.npz: actions of 3 numbers, those of .*1\.npz have 2; none of 1 files"):
        read_folder(files[:1], EpisodeSpec(), skip_bad=True, like=train)
    with pytest.raises(UserError, match=r"^none of 2 files can be used; the first: .*0\.npz: 6 frames"):
        read_folder(files[:2], EpisodeSpec(least_frames=9))


def test_bytes_of_zero_and_one_are_no_picture_and_no_numbers_no_action(tmp_path):
    made = episode()
    dark = save(tmp_path / "dark.npz", image=made.image // 128)
    assert "image is uint8 in 0..1, nearly black; expected 0..255, or floats in 0..1" in refused(dark)
    assert read_episode(save(tmp_path / "black.npz", image=made.image * 0), EpisodeSpec()).image.max() == 0
    empty = save(tmp_path / "empty.npz", image=made.image, action=made.action[:, :0])
    assert "action has shape [6, 0], expected [T, A]" in refused(empty)


def test_resize_crops_the_centre():
    image = np.zeros((1, 4, 8, 3), np.uint8)
    image[:, :, 2:6] = 200
    assert (resize(image, 4) == 200).all() and (resize(image, 2) == 200).all()


def load(path, **keys):
    return data.load_episodes(EpisodeData(name="episodes_folder", path=str(path), **keys), 0, EpisodeSpec())


def test_what_is_not_there_is_held_out_of_training(tmp_path):
    for i in range(20):
        write_episode(tmp_path / f"{i:02d}.npz", episode(seed=i))
    found = load(tmp_path)
    before = [set(split.sources) for split in (found.train, found.valid, found.test)]
    assert sum(map(len, before)) == len(set.union(*before)) == 20 and 12 <= len(before[0]) <= 18
    for i in range(20, 30):
        write_episode(tmp_path / f"{i:02d}.npz", episode(seed=i))
    found = load(tmp_path)
    after = [set(split.sources) for split in (found.train, found.valid, found.test)]
    assert all(one <= other for one, other in zip(before, after, strict=True))  # none has changed its side
    assert found.contents()["train"]["items"] == len(after[0])
    (tmp_path / "parts").mkdir()
    for part, num in (("train", 5), ("val", 2), ("test", 3)):
        for i in range(num):
            write_episode(tmp_path / "parts" / part / f"{i}.npz", episode(seed=i))
    found = load(tmp_path / "parts")
    assert (len(found.train), len(found.valid), len(found.test)) == (5, 2, 3)


def test_splits_are_known_by_their_names_in_any_case(tmp_path):
    for part, num in (("Training", 5), ("Dev", 2), ("TEST", 3)):
        for i in range(num):
            write_episode(tmp_path / part / f"{i}.npz", episode(seed=i))
    found = load(tmp_path)
    assert (len(found.train), len(found.valid), len(found.test)) == (5, 2, 3)
    write_episode(tmp_path / "eval" / "0.npz", episode())
    with pytest.raises(UserError, match="TEST and eval name the same split"):
        load(tmp_path)


def test_large_letters_are_read_and_other_files_said(tmp_path, caplog):
    for i in range(20):
        write_episode(tmp_path / "a.npz", episode(seed=i)).rename(tmp_path / f"{i:02d}{'.NPZ' if i % 2 else '.npz'}")
    (tmp_path / "episodes.json").write_text("{}")
    (tmp_path / "._00.npz").write_bytes(b"what macOS leaves beside a file")
    with caplog.at_level("INFO", "toolkit"):
        found = load(tmp_path)
    assert sum(map(len, (found.train, found.valid, found.test))) == 20 and "passed over" not in caplog.text
    np.save(tmp_path / "frames.npy", episode().image)
    with caplog.at_level("INFO", "toolkit"):
        load(tmp_path)
    assert f"data.path={tmp_path}: passed over, no .npz of a split: frames.npy" in caplog.messages


def test_episodes_beside_the_folders_of_splits_are_said(tmp_path, caplog):
    for i in range(20):
        write_episode(tmp_path / "train" / f"{i:02d}.npz", episode(seed=i))
    write_episode(tmp_path / "more" / "a.npz", episode())
    with caplog.at_level("INFO", "toolkit"):
        assert len(load(tmp_path).train) < 20
    assert "no .npz of a split: more/a.npz" in caplog.text


def test_folders_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: data\.name=episodes_folder needs the folder of episodes"):
        data.load_episodes(EpisodeData(name="episodes_folder"), 0, EpisodeSpec())
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no \.npz files in it; see"):
        load(tmp_path)
    (tmp_path / "a.npy").touch()
    with pytest.raises(UserError, match=r"no \.npz files in it \(but a\.npy\); see"):
        load(tmp_path)
    write_episode(tmp_path / "0.npz", episode())
    with pytest.raises(UserError, match="too few episodes"):
        load(tmp_path)
    with pytest.raises(UserError, match="episodes are push_sprite"):
        data.load_episodes(EpisodeData(name="mnist"), 0, EpisodeSpec())
    with pytest.raises(UserError, match="reads no files"):
        data.load_episodes(EpisodeData(name="push_sprite", path=str(tmp_path)), 0, EpisodeSpec())


def test_push_sprite_holds_out_the_same_worlds_for_every_seed():
    config = EpisodeData(num_train=4, num_valid=3, num_frames=5, size_px=16)
    first, second = (data.load_episodes(config, seed, EpisodeSpec(least_frames=6)) for seed in (0, 1))
    assert first.train.lengths == [6] * 4  # as long as a clip needs
    assert (first.test.read(0).image == second.test.read(0).image).all()
    assert (first.train.read(0).image != second.train.read(0).image).any()
    assert (first.test.read(0).image != first.valid.read(0).image).any()


@pytest.mark.parametrize("headers_only", [False, True])
def test_two_rewards_a_frame_are_refused(tmp_path, monkeypatch, headers_only):
    made = episode()
    path = save(tmp_path / "a.npz", image=made.image, reward=np.zeros((6, 2)))
    if headers_only:
        monkeypatch.setattr("toolkit.data.episodes.folder.READ_WHOLLY_BYTES", 0)
    with pytest.raises(UserError, match=r"a\.npz: reward has shape \[6, 2\], expected \[T\]"):
        read_folder([path], EpisodeSpec())
    column = save(tmp_path / "column.npz", image=made.image, reward=np.arange(6.0)[:, None])
    assert read_folder([column], EpisodeSpec())[0].read(0).reward.tolist() == [0, 1, 2, 3, 4, 5]


def test_numbers_that_float32_cannot_hold_are_refused_and_the_largest_it_can_are_read(tmp_path):
    made = episode()
    action = np.zeros((6, 2))
    action[2, 1] = -1e40
    message = refused(save(tmp_path / "a.npz", image=made.image, action=action))
    assert "action is -1e+40 at [2, 1], expected numbers that float32 holds" in message
    action[2, 1] = 3e38
    assert read_episode(save(tmp_path / "b.npz", image=made.image, action=action), EpisodeSpec()).action[2, 1] > 2e38


def folder_of(path, **facts):
    for number in range(6):
        write_episode(path / f"episode_{number}.npz", episode(seed=number))
    (path / "episodes.json").write_text(json.dumps(facts))
    return data.load_episodes(EpisodeData(name="episodes_folder", path=str(path), num_valid=1), 0, EpisodeSpec())


def test_what_the_manifest_says_about_actions_comes_with_the_data(tmp_path):
    found = folder_of(tmp_path, action_low=[-3, 0], action_high=[3, 9], discrete=2)
    assert found.action_bounds["low"].tolist() == [-3, 0] and found.action_bounds["high"].tolist() == [3, 9]
    assert found.discrete == 2


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"action_low": [-3]}, "episodes.json: action_low: expected 2 finite numbers"),
        ({"action_high": [1, float("inf")]}, "episodes.json: action_high: expected 2 finite numbers"),
        ({"action_high": "high"}, "episodes.json: action_high: expected 2 finite numbers"),
        ({"discrete": 3}, "discrete=3: the episodes' actions have 2"),
    ],
)
def test_a_manifest_that_does_not_fit_its_episodes_is_refused(tmp_path, facts, message):
    with pytest.raises(UserError, match=message):
        folder_of(tmp_path, **facts)


def arrivals(folder, num_files=4, **changes):
    """Files whose frame t has the grey level that action t set; nothing led to frame 0."""
    folder.mkdir()
    for number in range(num_files):
        levels = np.random.default_rng(number).integers(1, 250, 6)
        levels[0] = 0
        image = np.broadcast_to(levels[:, None, None, None], (6, 8, 8, 3)).astype(np.uint8)
        save(folder / f"{number}.npz", image=image, action=levels[:, None], **{"reward": 2.0 * levels, **changes})
    return folder


def loaded(folder, convention=None):
    keys = EpisodeData(name="episodes_folder", path=str(folder), num_valid=1, convention=convention)
    return data.load_episodes(keys, 0, EpisodeSpec(convention=convention))


def test_rows_that_led_to_their_frames_are_read_as_rows_that_leave_the_frame_before(tmp_path):
    found = loaded(arrivals(tmp_path / "a"), "arrival").train.read(0)
    following = found.image[1:, 0, 0, 0]
    assert (found.action[:-1, 0] == following).all() and (found.reward[:-1] == 2.0 * following).all()
    assert found.action[-1] == 0 and found.reward[-1] == 0 and len(found.action) == len(found.image)


def test_a_folder_that_looks_like_arrival_is_refused_until_the_key_says_which(tmp_path):
    folder = arrivals(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"first actions of all files are zeros.*data\.convention=arrival, or departure"
    ):
        loaded(folder)
    kept = loaded(folder, "departure").train.read(0)
    assert (kept.action[:, 0] == kept.image[:, 0, 0, 0]).all()
    assert len(loaded(arrivals(tmp_path / "b", reward=np.ones(6))).train)  # the first move was rewarded: departure


def test_files_that_cannot_be_in_the_arrival_convention_are_refused(tmp_path):
    for action, message in (
        (np.ones((6, 1)), "the first action is not zero"),
        (np.zeros((5, 1)), "5 rows for 6 frames"),
    ):
        path = save(tmp_path / "a.npz", image=np.zeros((6, 8, 8, 3), np.uint8), action=action)
        with pytest.raises(UserError, match=message):
            read_episode(path, EpisodeSpec(convention="arrival"))


def test_a_manifest_names_no_package_to_import(tmp_path, monkeypatch):
    touched = tmp_path / "touched"
    (tmp_path / "hostile_env.py").write_text(f"open({str(touched)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("hostile_env/Any-v0", "hostile_env:Any-v0", ["hostile_env/Any-v0"]):
        (tmp_path / "there").mkdir(exist_ok=True)
        found = folder_of(tmp_path / "there", env=name)
        assert found.env is None
        with pytest.raises(UserError, match="no simulator that is here"):
            found.make_env()
        assert not touched.exists()
    assert folder_of(tmp_path / "there", env="CartPole-v1").env == "CartPole-v1"


def test_arrays_beyond_their_file_or_beyond_memory_are_refused_unread(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 16, 16, 3)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(768))
    assert "shape (1000000000, 16, 16, 3) does not fit its 896 bytes" in refused(tmp_path / "lie.npz")
    monkeypatch.setattr("toolkit.data.episodes.npz.BOMB_BYTES", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", image=np.zeros((4096, 16, 16, 3), np.uint8))
    said = refused(tmp_path / "bomb.npz")
    assert re.search(r"bomb\.npz: 3\.0 MiB of arrays in \d\.\d KiB; an episode has at most 8 GiB", said)
