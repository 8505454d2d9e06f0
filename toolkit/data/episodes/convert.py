"""Robot data sets as they are published -> a folder of npz episodes: ``toolkit data convert LAYOUT SOURCE DEST``.

bair: TFRecords of bair_robot_pushing (softmotion30_44k), camera ``image_aux1``, 4 actions; train/ and test/ are kept.
robonet: the hdf5 files of RoboNet v3, camera 0, actions brought to 5 numbers as the release does.
oxe: the TFRecords of an Open X-Embodiment data set (RLDS: one example per episode).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolkit.data.episodes.episode import Episode, resize, write_episode
from toolkit.data.episodes.tfrecord import read_examples
from toolkit.errors import UserError, did_you_mean
from toolkit.installation import install_hint

log = logging.getLogger(__name__)
BAIR_FRAMES, BAIR_SIZE, BAIR_ACTIONS = 30, 64, 4
ROBONET_ACTIONS = 5


@dataclass(frozen=True)
class Options:
    """``image_key``: the camera, where a layout has several. ``size_px``: crop and resize; None keeps the size."""

    image_key: str | None = None
    size_px: int | None = None
    most: int | None = None


Episodes = Iterator[tuple[str, Callable[[], Episode]]]  # (path below DEST without suffix, how to read it)


def convert(layout: str, source: str | Path, dest: str | Path, options: Options) -> tuple[int, list[str]]:
    """Convert ``source`` into npz files below ``dest``; (episodes there, one line for each that could not be read).

    Episodes that are there already are not converted again. Raises UserError for an unknown layout or a source
    without such files.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout}: {did_you_mean(layout, LAYOUTS)}choose one of {', '.join(LAYOUTS)}")
    root = Path(source).expanduser()
    if not root.is_dir():
        raise UserError(f"{source}: no such folder")
    done, problems = 0, []
    for name, read in LAYOUTS[layout](root, options):
        if options.most is not None and done >= options.most:
            break
        path = Path(dest) / f"{name}.npz"
        try:
            if not path.exists():
                episode = read()
                if options.size_px is not None:
                    episode = Episode(resize(episode.image, options.size_px), episode.action)
                write_episode(path, episode)
            done += 1
        except UserError as error:
            problems.append(str(error))
            log.warning("left out: %s", error)
    return done, problems


def _bair(root: Path, options: Options) -> Episodes:
    root = root / "softmotion30_44k" if (root / "softmotion30_44k").is_dir() else root
    key = options.image_key or "image_aux1"
    for split in ("train", "test"):
        files = sorted((root / split).glob("*.tfrecords"), key=_first_number)
        if not files:
            raise UserError(f"{root / split}: no *.tfrecords in it; give the folder that holds train/ and test/")
        for path in files:
            for number, example in enumerate(_examples(path)):
                name = f"{split}/traj_{_first_number(path) + number:05d}"
                yield name, lambda example=example, path=path: _bair_episode(path, example, key)  # type: ignore[misc]


def _bair_episode(path: Path, example: dict[str, Any], key: str) -> Episode:
    frames, actions = [], []
    for t in range(BAIR_FRAMES):
        data = (example.get(f"{t}/{key}/encoded") or [b""])[0]
        if len(data) != BAIR_SIZE * BAIR_SIZE * 3:
            raise UserError(
                f"{path}: frame {t} of '{key}' has {len(data)} bytes, not a raw {BAIR_SIZE}x{BAIR_SIZE} image"
            )
        frames.append(np.frombuffer(data, np.uint8).reshape(BAIR_SIZE, BAIR_SIZE, 3))
        actions.append(np.asarray(example.get(f"{t}/action", []), np.float32)[:BAIR_ACTIONS])
    if any(len(action) != BAIR_ACTIONS for action in actions):
        raise UserError(f"{path}: an action has fewer than {BAIR_ACTIONS} numbers")
    return Episode(np.stack(frames), np.stack(actions))


def _first_number(path: Path) -> int:
    """1 of ``traj_1_to_256.tfrecords``: the number of its first trajectory."""
    digits = path.stem.split("_to_")[0].removeprefix("traj_")
    return int(digits) if digits.isdigit() else 0


def _oxe(root: Path, options: Options) -> Episodes:
    files = sorted(path for path in root.rglob("*.tfrecord*") if path.is_file())
    if not files:
        raise UserError(f"{root}: no *.tfrecord files; give the folder of one data set, such as bridge/0.1.0")
    for path in files:
        split = "test" if "-test." in path.name or "-val." in path.name else "train"
        for number, example in enumerate(_examples(path)):
            name = f"{split}/{path.name.replace('.', '_')}_{number:05d}"
            yield name, lambda example=example, path=path: _oxe_episode(path, example, options)  # type: ignore[misc]


def _oxe_episode(path: Path, example: dict[str, Any], options: Options) -> Episode:
    key = f"steps/observation/{options.image_key or 'image'}"
    if key not in example:
        seen = [name.split("/")[-1] for name in example if name.startswith("steps/observation/")]
        cameras = [name for name in seen if "image" in name or "rgb" in name]
        raise UserError(f"{path}: no '{key}'; choose --image-key among {', '.join(cameras) or 'its observations'}")
    image = np.stack([_decode(path, data) for data in example[key]])
    values = example.get("steps/action")
    if values is None or not len(values) or len(values) % len(image):
        return Episode(image)  # actions of several parts (world_vector, ...) differ from set to set
    return Episode(image, np.asarray(values, np.float32).reshape(len(image), -1))


def _decode(path: Path, data: bytes) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: a frame is no image ({error})") from None


def _examples(path: Path) -> Iterator[dict[str, Any]]:
    """The examples of a file up to the first damaged one, which is logged."""
    try:
        yield from read_examples(path)
    except UserError as error:
        log.warning("%s; what came before it is kept", error)


def _robonet(root: Path, options: Options) -> Episodes:
    files = sorted(root.rglob("*.hdf5"))
    if not files:
        raise UserError(f"{root}: no *.hdf5 in it; give RoboNet's hdf5 folder")
    for path in files:
        yield path.stem, lambda path=path: _robonet_episode(path, options.image_key or "cam0")  # type: ignore[misc]


def _robonet_episode(path: Path, camera: str) -> Episode:
    try:
        import h5py
    except ImportError:
        raise UserError(f"robonet: needs h5py; {install_hint('robots')}") from None
    try:
        with h5py.File(path, "r") as file:
            facts = {key: _plain(value) for key, value in file["metadata"].attrs.items()}
            frames = _robonet_frames(path, file["env"][f"{camera}_video"], facts)
            actions = robonet_actions(file["policy/actions"][:], file["env/state"][:], facts)
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: not a RoboNet file ({' '.join(str(error).split())})") from None
    num = min(len(frames), len(actions) + 1)
    return Episode(frames[:num], np.concatenate([actions, np.zeros_like(actions[:1])])[:num])


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _robonet_frames(path: Path, group: Any, facts: dict[str, Any]) -> NDArray[np.uint8]:
    frames: NDArray[np.uint8]
    encoding = str(facts.get("img_encoding"))
    if encoding == "mp4":
        import av

        with av.open(io.BytesIO(group["frames"][:].tobytes()), "r") as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    elif encoding == "jpg":
        names = sorted((name for name in group if name.startswith("frame")), key=lambda name: int(name[5:]))
        frames = np.stack([_decode(path, group[name][:].tobytes()) for name in names])
    else:
        raise UserError(f"{path}: frames are encoded as {encoding}, expected mp4 or jpg")
    return np.ascontiguousarray(frames[..., ::-1]) if facts.get("image_format") == "BGR" else frames


def robonet_actions(actions: NDArray[Any], state: NDArray[Any], facts: dict[str, Any]) -> NDArray[np.float32]:
    """RoboNet's actions as 5 numbers: x, y, z, turn, gripper.

    Shorter ones are padded with zeros and longer ones cut; robots that grasp by themselves get the gripper from the
    next state, high above the middle of its bounds and low below.
    """
    rows = np.asarray(actions, np.float32)
    width = rows.shape[1]
    if width == 4 and str(facts.get("primitives")) == "autograsp":
        high, low = np.ravel(facts["high_bound"])[-1], np.ravel(facts["low_bound"])[-1]
        closed = state[1 : len(rows) + 1, -1] > (high + low) / 2
        rows = np.concatenate([rows[: len(closed)], np.where(closed, high, low)[:, None]], 1)
    missing = ROBONET_ACTIONS - rows.shape[1]
    if missing > 0:
        rows = np.concatenate([rows, np.zeros((len(rows), missing), np.float32)], 1)
    return np.ascontiguousarray(rows[:, :ROBONET_ACTIONS], np.float32)


LAYOUTS: dict[str, Callable[[Path, Options], Episodes]] = {"bair": _bair, "robonet": _robonet, "oxe": _oxe}
