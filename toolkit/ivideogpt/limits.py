"""What roll-outs, plans and measures hold at once, against memory and a video's sides; said before anything trains."""

from __future__ import annotations

from toolkit.data.episodes.clips import ClipSource
from toolkit.data.video.write import MOST_SIDE_PX
from toolkit.errors import UserError
from toolkit.ivideogpt.clips import Clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.film import sheet_px
from toolkit.ivideogpt.measure.tracking import TRACKED
from toolkit.ivideogpt.rollout import imagined_frames, num_rows, rollout_source
from toolkit.runs.machine import check_fits


def check_limits(config: TrainIVideoGPT, clips: Clips) -> None:
    """Raises UserError naming the key that asks for more than this machine holds, or than the episodes have."""
    checks = {"rollout": _check_rollout, "plan": _check_plan, "measure": _check_measure}
    for stage, check in checks.items():
        if stage in config.stages():
            check(config, clips)


def _frame_bytes(clips: Clips) -> int:
    """Of a frame as float32."""
    return 4 * 3 * clips.resolution**2


def _check_rollout(config: TrainIVideoGPT, clips: Clips) -> None:
    keys, num_frames = config.rollout, config.context_length + imagined_frames(config)
    num = _there(rollout_source(clips, config), keys.num_clips)
    rows, cell = num_rows(config, clips.dataset.discrete is not None), clips.resolution * keys.scale
    check_fits("rollout.num_clips", num, num_frames * max(_frame_bytes(clips), 3 * rows * cell**2))  # or of its video
    most = MOST_SIDE_PX["h264"]
    for side, (key, value, made) in zip(
        sheet_px(rows, num, (cell, cell)),
        (("rollout.scale", keys.scale, "high"), ("rollout.num_clips", num, f"wide at rollout.scale={keys.scale}")),
        strict=True,
    ):
        if side > most:
            raise UserError(f"{key}={value}: makes a video {side} pixels {made}; {most} are the most of H.264")


def _check_plan(config: TrainIVideoGPT, clips: Clips) -> None:
    keys = config.plan
    at_once = keys.num_iterations if "shooting" in keys.planners else 1
    if {"cem", "shooting"} & set(keys.planners):
        check_fits("plan.num_candidates", keys.num_candidates, at_once * keys.horizon * _frame_bytes(clips))


def _check_measure(config: TrainIVideoGPT, clips: Clips) -> None:
    keys, frame_bytes, env = config.measure, _frame_bytes(clips), clips.dataset.env
    if set(keys.names) - {"tokens", "actions", "long"}:  # these read no held-out clips
        check_fits("measure.num_clips", _there(clips.test, keys.num_clips), config.num_frames * frame_bytes)
    if not config.action_conditioned or env is None:
        return
    if "actions" in keys.names and env in TRACKED:
        discrete = clips.dataset.discrete
        directions = 1 + 2 * clips.action_dim if discrete is None else discrete
        check_fits("measure.num_counterfactual", keys.num_counterfactual, directions * config.num_frames * frame_bytes)
    if "long" in keys.names:
        check_fits("measure.num_long_frames", keys.num_long_frames, frame_bytes)
        num_frames = config.context_length + keys.num_long_frames
        check_fits("measure.num_long_clips", keys.num_long_clips, num_frames * frame_bytes)


def _there(source: ClipSource, num: int) -> int:
    """How many of ``num`` fixed clips there are."""
    return min(num, int((source.counts > 0).sum()))
