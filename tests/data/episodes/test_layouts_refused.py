"""What cannot be converted is refused in a line: other options, damaged files, nulls, pointers of git LFS."""

import json

import numpy as np
import pytest

from tests.data.episodes import makers
from tests.data.episodes.test_layouts import BOX, EPISODES, converted, dreamer
from toolkit.data.episodes.convert import convert
from toolkit.data.episodes.layouts.base import Options
from toolkit.errors import UserError


def test_lerobot_refuses_in_one_line(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra formats is not installed")
    source = makers.lerobot(tmp_path / "in", EPISODES)
    place = source / "meta" / "info.json"
    right = json.loads(place.read_text())

    def line(**changed):
        place.write_text(json.dumps(right | changed))
        with pytest.raises(UserError) as caught:
            done, problems = convert("lerobot", source, tmp_path / "out", Options())
            raise UserError(f"{done} there; {problems[0]}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "codebase_version=v1.6: v2.0, v2.1, v3.0 are read" in line(codebase_version="v1.6")
    assert "leaves the folder" in line(data_path="../{episode_index:06d}.parquet")
    assert "is no template of paths" in line(data_path="{episode_index:0999999999d}")
    assert "is no template of paths" in line(data_path="{episode_index.__class__}")
    assert "not LeRobot's info" in line(features=[])
    assert "not LeRobot's info" in line(fps=0)
    second = right["features"] | {"observation.images.wrist": {"dtype": "video"}}
    assert "has 2 cameras; choose --image-key among observation.images.top" in line(features=second)
    (source / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    assert "1 there;" in line() and "download it" in line()
    makers.film(source / "videos/chunk-000/observation.images.top/episode_000001.mp4", EPISODES[1][0][:2])
    assert "shows nothing at 0.200 s, where row 2 is" in line()


def test_a_destination_of_other_options_is_refused(tmp_path):
    dreamer(tmp_path / "in" / "a.npz", *EPISODES[0])
    converted("dreamer", tmp_path / "in", tmp_path / "out", size_px=3)
    with pytest.raises(UserError, match=r"holds episodes with size_px=3, not 4"):
        convert("dreamer", tmp_path / "in", tmp_path / "out", Options(size_px=4))
    (tmp_path / "out" / "episodes.json").unlink()
    with pytest.raises(UserError, match="holds episodes that this command did not convert"):
        convert("dreamer", tmp_path / "in", tmp_path / "out", Options(size_px=3))


@pytest.mark.parametrize("layout", ["lerobot", "aloha", "robomimic", "minari", "d4rl", "dreamer"])
def test_damaged_files_are_a_line(tmp_path, layout):
    for needed in ("h5py", "pyarrow"):
        pytest.importorskip(needed, reason="the extra formats is not installed")
    make = {
        "lerobot": lambda: makers.lerobot(tmp_path / "in", EPISODES, "v3.0"),
        "aloha": lambda: makers.aloha(tmp_path / "in" / "a.hdf5", EPISODES[0]),
        "robomimic": lambda: makers.robomimic(tmp_path / "in" / "a.hdf5", EPISODES),
        "minari": lambda: makers.minari(tmp_path / "in", EPISODES, BOX),
        "d4rl": lambda: makers.d4rl(tmp_path / "a.hdf5", EPISODES).parent,
        "dreamer": lambda: dreamer(tmp_path / "in" / "a.npz", *EPISODES[0]),
    }
    made = make[layout]()
    source = made or tmp_path / "in"
    files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
    rng = np.random.default_rng(0)
    for number in range(30):
        path = files[number % len(files)]
        right = path.read_bytes()
        torn = bytearray(right[: rng.integers(len(right))] if number % 2 else right)
        for place in rng.integers(0, max(len(torn), 1), 8 if torn else 0):
            torn[place] = rng.integers(256)
        path.write_bytes(bytes(torn))
        try:
            _, problems = convert(layout, source, tmp_path / f"out{number}", Options())
        except UserError as error:
            problems = [str(error)]
        assert all("\n" not in line for line in problems)
        path.write_bytes(right)


def test_nulls_among_lerobots_numbers_are_named_by_their_row(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra formats is not installed")
    source = makers.lerobot(tmp_path / "in", EPISODES)
    path = sorted(source.rglob("episode_*.parquet"))[0]
    pq = __import__("pyarrow.parquet").parquet
    table = pq.read_table(path)
    rows = table["action"].to_pylist()

    def problem(column):
        place = table.schema.get_field_index("action")
        pq.write_table(table.set_column(place, "action", pa.array(column)), path)
        return convert("lerobot", source, tmp_path / "out", Options(most=1))[1][0]

    assert problem([[None, *rows[0][1:]], *rows[1:]]).endswith("action is nan at [0, 0], expected finite numbers")
    assert problem([None, *rows[1:]]).endswith("rows of 'action' differ in length, or are no numbers")


def test_a_pointer_of_git_lfs_is_told_from_damage(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    source = makers.lerobot(tmp_path / "in", EPISODES)
    for pattern in ("*.mp4", "*.parquet"):
        next(source.rglob(pattern)).write_text(pointer)
        assert (
            "a pointer of Git LFS stands in its place; git lfs pull"
            in convert("lerobot", source, tmp_path / "out", Options())[1][0]
        )
    (tmp_path / "demo.hdf5").write_text(pointer)
    (tmp_path / "a.npz").write_text(pointer)
    with pytest.raises(UserError, match="a pointer of Git LFS stands in its place; git lfs pull"):
        convert("robomimic", tmp_path / "demo.hdf5", tmp_path / "x", Options())
    assert "a pointer of Git LFS" in convert("dreamer", tmp_path / "a.npz", tmp_path / "x", Options())[1][0]


def first_line(layout, path):
    with pytest.raises(UserError) as caught:
        _, problems = convert(layout, path, path.parent / "out", Options())
        raise UserError(problems[0])
    return str(caught.value).removeprefix(f"{path}: ")


def test_flags_that_cut_episodes_are_numbers_one_for_each_row(tmp_path):
    """Fewer of them would leave frames out, and text or NaN is no yes and no no."""
    h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")
    image, action = EPISODES[0][0], EPISODES[0][1]
    num = len(image)
    right = {"observations": image, "actions": action, "rewards": np.zeros(num)}
    right |= dict.fromkeys(("terminals", "timeouts"), np.zeros(num, bool))
    path = tmp_path / "a.hdf5"

    def line(**changed):
        with h5py.File(path, "w") as file:
            for key, value in (right | changed).items():
                file[key] = value
        return first_line("d4rl", path)

    few = dict.fromkeys(("terminals", "timeouts"), np.zeros(num - 1, bool))
    assert line(**few) == f"terminals has {num - 1} numbers for {num} rows of 'actions', expected one each"
    assert line(timeouts=np.full(num, np.nan)) == "timeouts is nan at [0], expected finite numbers"
    assert line(terminals=np.array([b"no"] * num)) == "terminals is |S2, expected finite numbers"
    newer = {"step_type": np.arange(1, num + 1), "action": action, "observation": image}
    assert line(**newer) == "step_type begins with 1, so its first episode has lost its beginning"
    place = tmp_path / "a.npz"
    for key in ("is_first", "is_terminal"):
        np.savez(place, image=image, action=action * 0, **{key: np.array(["no"] * num)})
        assert first_line("dreamer", place) == f"{key} is <U2, expected finite numbers"
    np.savez(place, image=image, action=action * 0, discount=np.full(num, np.nan))
    assert first_line("dreamer", place) == "discount is nan at [0], expected finite numbers"


def test_a_mask_of_other_demos_holds_nothing_out(tmp_path):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    path = tmp_path / "a.hdf5"
    makers.robomimic(path, EPISODES, mask={"valid": ["demo_77"]})
    assert first_line("robomimic", path) == "mask/valid names demo_77, and no demo of 'data' (demo_0, ...)"
