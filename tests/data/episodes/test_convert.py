"""Robot data sets as published -> npz: files in their documented formats are made here, then converted."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from toolkit.data.episodes.convert import convert
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.episodes.layouts.base import Options
from toolkit.data.episodes.layouts.robonet import robonet_actions
from toolkit.data.episodes.tfrecord import read_examples
from toolkit.errors import UserError


def varint(number):
    out = b""
    while True:
        number, low = number >> 7, number & 127
        out += bytes([low | (128 if number else 0)])
        if not number:
            return out


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(value):
    if isinstance(value, list) and isinstance(value[0], bytes):
        return field(1, b"".join(field(1, one) for one in value))
    if np.issubdtype(np.asarray(value).dtype, np.floating):
        return field(2, field(1, np.asarray(value, "<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(one) % 2**64) for one in value)))


def write_records(path, examples):
    content = b""
    for example in examples:
        entries = b"".join(field(1, field(1, k.encode()) + field(2, feature(v))) for k, v in example.items())
        record = field(1, entries)
        content += struct.pack("<Q", len(record)) + b"crc!" + record + b"crc!"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def test_examples_are_read_back(tmp_path):
    example = {"text": [b"a", b"bc"], "floats": [0.5, -2.0], "numbers": [3, -1, 300]}
    content = write_records(tmp_path / "x.tfrecord", [example, example])
    found = list(read_examples(tmp_path / "x.tfrecord"))
    assert len(found) == 2 and found[0]["text"] == [b"a", b"bc"]
    assert found[1]["floats"].tolist() == [0.5, -2.0] and found[1]["numbers"].tolist() == [3, -1, 300]
    (tmp_path / "cut.tfrecord").write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"cut\.tfrecord: ends inside a record"):
        list(read_examples(tmp_path / "cut.tfrecord"))


def bair_example(seed):
    rng = np.random.default_rng(seed)
    example = {}
    for t in range(30):
        example[f"{t}/image_aux1/encoded"] = [rng.integers(0, 256, 64 * 64 * 3, dtype=np.uint8).tobytes()]
        example[f"{t}/action"] = rng.normal(size=4).astype(np.float32)
    return example


def test_bair(tmp_path):
    source = tmp_path / "softmotion30_44k"
    write_records(source / "train" / "traj_257_to_258.tfrecords", [bair_example(2), bair_example(3)])
    write_records(source / "train" / "traj_1_to_1.tfrecords", [bair_example(0)])
    cut = write_records(source / "test" / "traj_1_to_2.tfrecords", [bair_example(4), bair_example(5)])
    (source / "test" / "traj_1_to_2.tfrecords").write_bytes(cut[:-100])  # the second example is torn
    assert convert("bair", tmp_path, tmp_path / "out", Options()) == (4, [])
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.npz"))
    assert names == [f"test/traj_{1:05d}.npz"] + [f"train/traj_{i:05d}.npz" for i in (1, 257, 258)]
    found = read_episode(tmp_path / "out" / "train" / "traj_00257.npz", EpisodeSpec(needs_action=True))
    example = bair_example(2)
    assert found.image[7].tobytes() == example["7/image_aux1/encoded"][0]
    assert np.allclose(found.action[7], example["7/action"])
    small, _ = convert("bair", tmp_path, tmp_path / "small", Options(size_px=32, most=1))
    assert small == 1 and len(list((tmp_path / "small").rglob("*.npz"))) == 1


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_oxe(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    action = rng.normal(size=(5, 7)).astype(np.float32)
    good = {"steps/observation/image": [png(one) for one in image], "steps/action": action.ravel()}
    other = {"steps/observation/hand_image": [png(one) for one in image], "steps/action": action.ravel()}
    write_records(tmp_path / "in" / "bridge-train.tfrecord-00000-of-00001", [good, other])
    done, problems = convert("oxe", tmp_path / "in", tmp_path / "out", Options())
    assert done == 1 and len(problems) == 1 and "choose --image-key among hand_image" in problems[0]
    [path] = (tmp_path / "out" / "train").glob("*.npz")
    found = read_episode(path, EpisodeSpec())
    assert (found.image == image).all() and np.allclose(found.action, action)
    with pytest.raises(UserError, match="no \\*\\.tfrecord files"):
        convert("oxe", tmp_path / "out", tmp_path / "x", Options())


def test_robonet(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra robots is not installed")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.hdf5", "w") as file:
        for t, one in enumerate(image):
            file[f"env/cam0_video/frame{t}"] = np.frombuffer(png(one), np.uint8)
        file["policy/actions"] = np.ones((4, 4))
        file["env/state"] = np.array([[0, 0.0], [0, 0.0], [0, 1.0], [0, 1.0], [0, 0.0]])
        attributes = file.create_group("metadata").attrs
        attributes.update({"img_encoding": "jpg", "image_format": "BGR", "primitives": "autograsp"})
        attributes.update({"low_bound": [-1.0] * 5, "high_bound": [1.0] * 5})
    (tmp_path / "in" / "torn.hdf5").write_bytes(b"no hdf5")
    done, problems = convert("robonet", tmp_path / "in", tmp_path / "out", Options())
    assert done == 1 and len(problems) == 1 and "torn.hdf5: not a RoboNet file" in problems[0]
    found = read_episode(tmp_path / "out" / "a.npz", EpisodeSpec())
    assert (found.image == image[..., ::-1]).all()
    assert found.action[:, 4].tolist() == [-1, 1, 1, -1, 0]  # the gripper follows the next state; the last row is none


def test_robonet_actions_have_five_numbers():
    state = np.zeros((4, 3))
    assert robonet_actions(np.ones((3, 3)), state, {}).tolist() == [[1, 1, 1, 0, 0]] * 3
    assert robonet_actions(np.ones((3, 6)), state, {}).shape == (3, 5)
    assert robonet_actions(np.full((3, 5), 2.0), state, {}).tolist() == [[2.0] * 5] * 3
    assert robonet_actions(np.ones((3, 4)), state, {"primitives": "none"}).tolist() == [[1, 1, 1, 1, 0]] * 3


def test_unknown_layouts_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'bair'"):
        convert("bai", tmp_path, tmp_path, Options())
    with pytest.raises(UserError, match="no such folder"):
        convert("bair", tmp_path / "nowhere", tmp_path, Options())
    with pytest.raises(UserError, match="give the folder that holds train/ and test/"):
        convert("bair", tmp_path, tmp_path, Options())
