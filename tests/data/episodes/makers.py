"""Tiny data sets in the layouts that people have, written with the libraries that define them, from known arrays."""

import json

import numpy as np


def known(num=5, height=6, width=8, actions=2, seed=0):
    """Frames (T, H, W, 3), actions (T, A) and rewards [T] of moves from their frames."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8),
        rng.normal(size=(num, actions)).astype(np.float32),
        rng.normal(size=num).astype(np.float32),
    )


def arriving(rows):
    """Rows of moves from their frames as rows that led to them; the last move leads out."""
    return np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])


def aloha(path, episode, cameras=("top",), encode=None):
    """As ACT's recorder writes; encode: of an RGB frame, the bytes of its file, all as long as the longest."""
    import h5py

    image, action, _ = episode
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, encode is not None
        for camera in cameras:
            files = [encode(frame) for frame in image] if encode else []
            rows = [np.frombuffer(one.ljust(max(map(len, files)), b"\0"), np.uint8) for one in files]
            file[f"observations/images/{camera}"] = np.stack(rows) if encode else image
        file["observations/qpos"], file["action"] = np.zeros((len(image), 14)), action
    return path


def robomimic(path, episodes, mask=None, cameras=("agentview_image",)):
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, (image, action, reward) in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = len(image)
            for camera in cameras:
                demo[f"obs/{camera}"] = image
            demo["obs/robot0_eef_pos"] = np.zeros((len(image), 3))
            demo["actions"], demo["rewards"] = action.astype(np.float64), reward.astype(np.float64)
            demo["dones"] = np.zeros(len(image), np.int64)
        for name, demos in (mask or {}).items():
            file[f"mask/{name}"] = np.array(demos, "S")
    return path


def minari(root, episodes, space, key=None, encode=None):
    """``key``: the entry of Dict observations that holds the pictures; None: observations are pictures.

    encode: of a frame, the bytes of its file, which since 0.5.4 stand in place of frames, stacked where equally long.
    """
    import h5py

    (root / "data").mkdir(parents=True)
    meta = {"total_episodes": len(episodes), "data_format": "hdf5", "action_space": json.dumps(space)}
    (root / "data" / "metadata.json").write_text(json.dumps(meta))
    with h5py.File(root / "data" / "main_data.hdf5", "w") as file:
        for number, (image, action, reward) in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            name = "observations" if key is None else f"observations/{key}"
            if encode is None:
                group[name] = image
            else:
                rows = [np.frombuffer(encode(frame), np.uint8) for frame in image]
                alike = len({len(row) for row in rows}) == 1
                group.create_dataset(name, data=rows, dtype=None if alike else h5py.vlen_dtype(np.uint8))
            if key is not None:
                group["observations/state"] = np.zeros((len(image), 3))
            group["actions"], group["rewards"] = action[:-1], reward[:-1].astype(np.float64)
            group["terminations"] = np.arange(len(image) - 1) == len(image) - 2
            group["truncations"] = np.zeros(len(image) - 1, bool)
    return root


def d4rl(path, episodes, **more):
    import h5py

    images, actions, rewards = (np.concatenate(part) for part in zip(*episodes, strict=True))
    ends = np.concatenate([np.arange(len(one[0])) == len(one[0]) - 1 for one in episodes])
    terminal = ends & (np.arange(len(ends)) < len(episodes[0][0]))  # the first ends, the others are cut
    arrays = {"observations": images, "actions": actions, "rewards": rewards, "terminals": terminal}
    with h5py.File(path, "w") as file:
        for name, value in {**arrays, "timeouts": ends & ~terminal, **more}.items():
            if value is not None:
                file[name] = value
    return path


def vd4rl(path, episodes):
    import h5py

    with h5py.File(path, "w") as file:
        file["observation"] = np.concatenate([image.transpose(0, 3, 1, 2) for image, _, _ in episodes])
        file["action"] = np.concatenate([arriving(action) for _, action, _ in episodes])
        file["reward"] = np.concatenate([arriving(reward) for _, _, reward in episodes])
        file["discount"] = np.concatenate([np.ones(len(image)) for image, _, _ in episodes])
        last = [len(image) - 1 for image, _, _ in episodes]
        steps = [np.where(np.arange(n + 1) == 0, 0, np.where(np.arange(n + 1) == n, 2, 1)) for n in last]
        file["step_type"] = np.concatenate(steps)
    return path


def film(path, frames, rate=10, start=0):
    """Lossless, so that frames come back as they were; each ``start`` frames later."""
    from fractions import Fraction

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=rate, options={"crf": "0", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number + start, Fraction(1, rate)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def lerobot(root, episodes, version="v2.1", camera="observation.images.top", embedded=False, **more):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.data.episodes.test_convert import png

    kind = {"dtype": "image" if embedded else "video", "shape": [6, 8, 3]}
    features = {"action": {"dtype": "float32", "shape": [2]}, camera: kind, "next.reward": {"dtype": "float32"}}
    third = version == "v3.0"
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = "chunk-{episode_chunk:03d}/"
    info = {
        "codebase_version": version,
        "total_episodes": len(episodes),
        "fps": 10,
        "chunks_size": 1000,
        "features": features,
        "data_path": f"data/{place}.parquet" if third else f"data/{old}episode_{{episode_index:06d}}.parquet",
        "video_path": "videos/{video_key}/" + place + ".mp4"
        if third
        else f"videos/{old}{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info | more))
    tables, index, start = [], [], 0
    for number, (image, action, reward) in enumerate(episodes):
        rows = {
            "action": list(action),
            "next.reward": reward,
            "next.done": np.arange(len(image)) == len(image) - 1,
            "timestamp": (np.arange(len(image)) / 10).astype(np.float32),
            "episode_index": np.full(len(image), number),
        }
        if embedded:
            rows[camera] = [{"bytes": png(one), "path": None} for one in image]
        tables.append(pa.table(rows))
        own = {f"videos/{camera}/{key}": value for key, value in (("chunk_index", 0), ("file_index", 0))}
        own |= {"data/chunk_index": 0, "data/file_index": 0, "episode_index": number}
        index.append(own | {f"videos/{camera}/from_timestamp": start / 10})
        start += len(image)
    data = root / "data" / "chunk-000"
    data.mkdir(parents=True)
    images = [image for image, _, _ in episodes]
    if third:
        pq.write_table(pa.concat_tables(tables), data / "file-000.parquet")
        (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(index), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
        if not embedded:
            film(root / "videos" / camera / "chunk-000" / "file-000.mp4", np.concatenate(images))
        return root
    for number, table in enumerate(tables):
        pq.write_table(table, data / f"episode_{number:06d}.parquet")
        if not embedded:
            film(root / "videos" / "chunk-000" / camera / f"episode_{number:06d}.mp4", images[number])
    return root
