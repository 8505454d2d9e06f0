"""``toolkit bench venhancer what=backends``: frames per second of what ``keys=`` and ``between=`` can name, in one run.

All make twice the size and rate of the same frames. ``ncnn=FOLDER/NAME`` and ``spandrel=FILE`` name models of others;
what is not installed or not named is left out, and the line under the table says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from toolkit.bench import Contender, Makers
from toolkit.errors import UserError
from toolkit.venhancer.bench import classic
from toolkit.venhancer.clips.backends import KeysBackend
from toolkit.venhancer.clips.between import make_between
from toolkit.venhancer.config import Classic, Windows
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.keys.tiled import TILE_PX


def makers(clip: str, num_frames: int, ncnn: str | None, spandrel: str | None) -> tuple[Makers, list[str]]:
    """The contenders that can be built here (``ours`` is the command with its defaults), and why others cannot."""
    asked = {"ours": ("upscaler", "motion"), "rife": ("upscaler", "rife")}
    left_out = []
    for kind, model in (("ncnn", ncnn), ("spandrel", spandrel)):
        if model is None:
            left_out.append(f"{kind}: no model is named")
        else:
            asked[kind] = (f"{kind}:{model}", "motion")
    found: dict[str, Callable[[], Contender]] = {}
    for name, (keys, between) in asked.items():
        try:
            load_upscaler(keys, "cpu")
            make_between(between, Classic(), Windows(), "cpu")
        except UserError as error:
            left_out.append(f"{name}: {error}")
            continue
        found[name] = functools.partial(_of_keys, clip, num_frames, keys, between)
    others = classic.makers(clip, num_frames)
    return found | {"classic": others["ours"]} | {name: others[name] for name in others if name != "ours"}, left_out


def _of_keys(clip: str, num_frames: int, keys: str, between: str) -> Contender:
    reader, timeline, width, height = classic.scene(clip, num_frames)
    upscaler, made = load_upscaler(keys, "cpu"), make_between(between, Classic(), Windows(), "cpu")
    backend = KeysBackend(reader, (width, height), upscaler, (TILE_PX, TILE_PX), made)

    def enhance() -> float:
        return float(sum(1 for shot in timeline.shots for _ in backend.frames(shot, 0)))

    return Contender({"enhance": enhance})
