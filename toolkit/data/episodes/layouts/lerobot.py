"""LeRobot, versions 2.0, 2.1 and 3.0: parquet tables, mp4 films, and ``meta/info.json`` that describes both.

Version 2 has one table and one film of each camera per episode, version 3 several episodes in each; ``meta/episodes``
says which. Row t is taken at frame t. Frames are those shown at the rows' timestamps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode, move_flags, move_rows
from toolkit.data.episodes.layouts.base import Options, Source, action_rows, choose_camera, decode, stack
from toolkit.data.episodes.npz import MOST_BYTES
from toolkit.errors import UserError, brief
from toolkit.installation import install_hint
from toolkit.plain_files import why

VERSIONS = ("v2.0", "v2.1", "v3.0")
FIELD = re.compile(r"\{(\w+)(?::0?\d?d)?\}")  # {episode_index:06d}
COLUMNS = {"reward": "next.reward", "terminal": "next.done"}


@dataclass(frozen=True)
class Data:
    """An opened data set. ``camera``: the feature of its pictures; ``episodes`` of version 3, by their index."""

    root: Path
    info: dict[str, Any]
    camera: str
    episodes: dict[int, dict[str, Any]]

    @property
    def is_film(self) -> bool:
        return self.info["features"][self.camera]["dtype"] == "video"

    def path(self, kind: str, **fields: Any) -> Path:
        """A file by the template ``kind`` of info.json. Raises UserError where that leaves the folder, or is none."""
        template = self.info.get(kind)
        if not isinstance(template, str) or FIELD.sub("", template).count("{"):
            raise UserError(f"{self.root / 'meta/info.json'}: {kind}={template} is no template of paths")
        try:
            place = (self.root / template.format(**fields)).resolve()
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{self.root / 'meta/info.json'}: {kind}={template} cannot be filled ({error})") from None
        if not place.is_relative_to(self.root.resolve()):
            raise UserError(f"{self.root / 'meta/info.json'}: {kind}={template} leaves the folder")
        if not place.is_file():
            raise UserError(f"{place}: no such file, though {kind} of meta/info.json names it; download it")
        return place


def read(root: Path, options: Options) -> Source:
    """The episodes of one data set. Raises UserError, NeedsOption among several cameras."""
    place = root / "meta" / "info.json"
    if not place.is_file():
        raise UserError(f"{root}: no meta/info.json in it; give the folder of one data set")
    try:
        info = json.loads(place.read_text(encoding="utf-8"))
        kinds = {str(name): str(one["dtype"]) for name, one in info["features"].items()}
        version, total = info["codebase_version"], int(info["total_episodes"])
        info |= {"fps": float(info["fps"]), "chunks_size": int(info.get("chunks_size", 1000))}
        if not info["fps"] > 0 or info["chunks_size"] < 1:
            raise ValueError(f"fps={info['fps']}, chunks_size={info['chunks_size']}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{place}: not LeRobot's info ({brief(error)})") from None
    if version not in VERSIONS:
        raise UserError(f"{place}: codebase_version={version}: {', '.join(VERSIONS)} are read")
    if "action" not in kinds:
        raise UserError(f"{place}: no feature 'action'")
    cameras = [name for name, kind in kinds.items() if kind in ("video", "image")]
    names = {name.removeprefix("observation.images."): name for name in cameras}
    wanted = (
        options.image_key if options.image_key in cameras else names.get(options.image_key or "", options.image_key)
    )
    data = Data(root, info, choose_camera(root, cameras, wanted), _index(root) if version == "v3.0" else {})
    numbers = sorted(data.episodes) if version == "v3.0" else range(total)
    return Source(_episodes(data, numbers, options))


def _episodes(data: Data, numbers: Any, options: Options) -> Iterator[tuple[str, Callable[[], Episode]]]:
    for number in numbers:
        yield f"episode_{number:06d}", lambda number=number: _episode(data, number, options)  # type: ignore[misc]


def _index(root: Path) -> dict[int, dict[str, Any]]:
    """Of version 3: episode -> where its rows and films are."""
    files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise UserError(f"{root}: no meta/episodes/*.parquet in it, which version 3.0 has")
    rows = [row for path in files for row in _table(path, None, ("data/", "videos/", "episode_index")).to_pylist()]
    if any(not isinstance(row.get("episode_index"), int) for row in rows):
        raise UserError(f"{files[0]}: no column 'episode_index' of whole numbers")
    return {row["episode_index"]: row for row in rows}


def _table(path: Path, episode: int | None, columns: tuple[str, ...]) -> Any:
    """The columns whose names begin so, of one episode's rows or of all. Raises UserError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"lerobot: needs pyarrow; {install_hint('formats')}") from None
    try:
        names = [name for name in pq.read_schema(path).names if name.startswith(columns)]
        chosen = None if episode is None else [("episode_index", "=", episode)]
        return (
            pq.ParquetFile(path).read(names) if chosen is None else pq.read_table(path, columns=names, filters=chosen)
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or no parquet file ({why(path, error)})") from None


def _episode(data: Data, number: int, options: Options) -> Episode:
    where = f"{data.root}: episode {number}"
    place = data.episodes.get(number)
    fields: dict[str, Any] = {
        "episode_index": number,
        "episode_chunk": number // data.info["chunks_size"],
    }
    if place is not None:
        fields |= {"chunk_index": place.get("data/chunk_index"), "file_index": place.get("data/file_index")}
    path = data.path("data_path", **fields)
    own = () if data.is_film else (data.camera,)
    table = _table(path, number, ("action", "timestamp", "episode_index", *COLUMNS.values(), *own))
    if not table.num_rows or not {"action", "timestamp"} <= set(table.column_names):
        raise UserError(f"{path}: no rows with 'action' and 'timestamp' of episode {number}")
    image = _film(data, number, table) if data.is_film else _embedded(data, path, table)
    num, how = len(image), options.convention
    found = {key: _numbers(path, table, name) for key, name in COLUMNS.items() if name in table.column_names}
    action = action_rows(where, _numbers(path, table, "action"), options.num_actions)
    reward, over = found.get("reward"), found.get("terminal")
    return Episode(
        image,
        move_rows(where, "action", action, num, how),
        move_rows(where, "next.reward", None if reward is None else reward.ravel(), num, how),
        move_flags(where, "next.done", None if over is None else over.ravel(), num, how),
    )


def _numbers(path: Path, table: Any, name: str) -> NDArray[Any]:
    try:
        rows = np.asarray(table.column(name).to_pylist())
        if rows.dtype == object:  # nulls become nan, which is refused by its row
            rows = rows.astype(np.float64)
        return rows
    except (ValueError, TypeError):
        raise UserError(f"{path}: rows of '{name}' differ in length, or are no numbers") from None


def _embedded(data: Data, path: Path, table: Any) -> NDArray[np.uint8]:
    """Pictures that stand in the table itself, or beside it in files of its own folder."""
    frames = []
    for one in table.column(data.camera).to_pylist():
        content = one.get("bytes") if isinstance(one, dict) else one
        if not isinstance(content, bytes):
            raise UserError(f"{path}: '{data.camera}' holds no encoded pictures")
        frames.append(decode(path, content))
    return stack(path, frames)


def _film(data: Data, number: int, table: Any) -> NDArray[np.uint8]:
    """The frames shown at the rows' timestamps."""
    place, key = data.episodes.get(number), data.camera
    fields: dict[str, Any] = {"episode_index": number, "video_key": key}
    start: Any = 0.0
    if place is None:
        fields["episode_chunk"] = number // data.info["chunks_size"]
    else:
        fields |= {name: place.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index")}
        start = place.get(f"videos/{key}/from_timestamp")
        if not isinstance(start, float):
            raise UserError(f"{data.root / 'meta/episodes'}: no videos/{key}/from_timestamp of episode {number}")
    path = data.path("video_path", **fields)
    times = start + _numbers(path, table, "timestamp").ravel().astype(np.float64)
    return frames_at(path, times, 1 / data.info["fps"])


def frames_at(path: Path, times: NDArray[np.float64], spacing_s: float) -> NDArray[np.uint8]:
    """The frames (T, H, W, 3) of a film shown at ``times``, in seconds and ascending.

    Raises UserError where the nearest frame is half a ``spacing_s`` away or more, or the film cannot be decoded.
    """
    import av

    from toolkit.data.video.reader import file_url

    found: list[Any] = [None] * len(times)
    away = np.full(len(times), spacing_s / 2)
    try:
        with av.open(file_url(path)) as film:
            stream = film.streams.video[0]
            if stream.width * stream.height * 3 * len(times) > MOST_BYTES:
                raise UserError(f"{path}: {len(times)} frames of {stream.width}x{stream.height}, more than is read")
            film.seek(int(max(times[0] - spacing_s, 0) / stream.time_base), stream=stream)
            for frame in film.decode(stream):
                if frame.time is None:
                    continue
                near = np.flatnonzero(np.abs(times - frame.time) < away)
                if len(near):
                    picture = frame.to_ndarray(format="rgb24")
                    for index in near:
                        found[index], away[index] = picture, abs(times[index] - frame.time)
                if frame.time > times[-1] + spacing_s:
                    break
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: no film that can be decoded ({why(path, error, 300)})") from None
    missing = [index for index, one in enumerate(found) if one is None]
    if missing:
        raise UserError(
            f"{path}: shows nothing at {times[missing[0]]:.3f} s, where row {missing[0]} is; it is cut short"
        )
    return stack(path, found)
