"""``toolkit bench venhancer``: one guided denoising step of a clip, and the classic backend, against their peers.

Contenders of the step, same weights, same shapes, same threads:
  ours      one pass for both texts, tokens in one layout, skips added in place (ControlledVideoUNet)
  one_by_one  the same network, a pass per text, for what sharing them brings
  official  the official network code, from a checkout of Vchitect/VEnhancer that the user names (official=PATH)

``what=tiles`` times what cutting up costs beyond the network (see tiles.py), ``what=classic`` the backend without
a network (see classic.py), ``what=backends`` all that makes frames on this machine (see backends.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bench import BenchOptions, Contender, Makers, parse_options, run_bench
from toolkit.errors import UserError
from toolkit.schema import choice, number
from toolkit.venhancer.bench.shared import NETWORK, fill


@dataclass
class Options(BenchOptions):
    """key=value options of the benchmark; sizes in latents. clip, clip_frames: what ``what=classic`` and ``backends``
    enhance. ncnn, spandrel: models of others for ``what=backends``, named as after ``keys=ncnn:`` and so on."""

    what: str = choice("step", "step", "tiles", "classic", "backends")
    clip: str = "bikes"
    clip_frames: int = number(12, least=3)
    num_rounds: int = number(5, least=1)
    dim: int = number(64, least=32)
    head_dim: int = number(64, least=8)
    frames: int = number(8, least=1)
    frame_factor: int = number(2, least=1, most=8)
    rows: int = number(42, least=10)
    columns: int = number(64, least=8)
    official: str | None = None
    ncnn: str | None = None
    spandrel: str | None = None

    def check(self) -> None:
        """``official`` is a checkout; sizes are those that the release's padding takes."""
        if self.official and not (Path(self.official) / NETWORK).exists():
            raise UserError(f"official={self.official}: no checkout of Vchitect/VEnhancer there ({NETWORK} is missing)")
        if self.rows % 8 != 2 or self.columns % 8:
            raise UserError(f"rows={self.rows}, columns={self.columns}: must be 8 n + 2 and 8 n")


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    if options.what == "classic":
        from toolkit.venhancer.bench import classic as bench_classic

        makers = bench_classic.makers(options.clip, options.clip_frames)
        return run_bench("venhancer", options, makers, "frames", bench_classic.note(options.clip, options.clip_frames))
    if options.what == "backends":
        from toolkit.venhancer.bench import backends as bench_backends
        from toolkit.venhancer.bench import classic as bench_classic

        makers, left_out = bench_backends.makers(options.clip, options.clip_frames, options.ncnn, options.spandrel)
        note = "; ".join(
            [bench_classic.note(options.clip, options.clip_frames), *(f"not run: {one}" for one in left_out)]
        )
        return run_bench("venhancer", options, makers, "frames", note)
    if options.what == "tiles":
        from toolkit.venhancer.bench import tiles as bench_tiles

        makers = bench_tiles.makers(options.dim, options.device)
        return run_bench("venhancer", options, makers, "tiles", bench_tiles.note(options.dim))
    shape = f"{options.frames} frames of {options.rows}x{options.columns} latents, width {options.dim}, two texts"
    return run_bench("venhancer", options, contenders(options), "steps", shape)


def contenders(options: Options) -> Makers:
    """Name -> function that builds it."""
    makers: dict[str, Callable[[], Contender]] = {
        "ours": lambda: _ours(options, together=True),
        "one_by_one": lambda: _ours(options, together=False),
    }
    return makers | ({"official": lambda: _official(options)} if options.official else {})


def official_config(options: Options) -> dict[str, Any]:
    """The release's network at another width."""
    from toolkit.zoo.video.import_venhancer import RELEASE

    return RELEASE | {"dim": options.dim, "head_dim": options.head_dim}


def inputs(options: Options) -> dict[str, Any]:
    """Random latents, hints and texts."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(options.device)

    keys = (options.frames - 1) // options.frame_factor + 1
    mask = torch.ones(1, options.frames, device=options.device)
    mask[:, :: options.frame_factor] = 0
    return {
        "x": draw(1, 4, options.frames, options.rows, options.columns),
        "texts": (draw(1, 77, 1024), draw(1, 77, 1024)),
        "conditions": {
            "hint": draw(1, 4, keys, options.rows, options.columns),
            "t_hint": torch.tensor([199], device=options.device),
            "up_scale": torch.tensor([4], device=options.device),
            "mask_cond": mask,
        },
    }


def _ours(options: Options, together: bool) -> Contender:
    import torch

    from toolkit.venhancer.model.samplers import guide
    from toolkit.venhancer.model.schedule import VideoNoiseSchedule
    from toolkit.zoo.counting import count_parameters
    from toolkit.zoo.video.import_venhancer import build

    network = build(official_config(options), Path("bench")).to_empty(device=options.device).eval()
    fill(network)
    given, schedule = inputs(options), VideoNoiseSchedule()
    t = torch.tensor([500], device=options.device)
    x, texts, conditions = given["x"], given["texts"], given["conditions"]

    @torch.no_grad()
    def step() -> int:
        if together:
            v, v_negative = network(x, t, torch.cat(texts), **conditions).chunk(2)
        else:
            v, v_negative = (network(x, t, text, **conditions) for text in texts)
        schedule.clean(x, guide(v, v_negative, 7.5, 0.2), 500)
        return 1

    return Contender({"step": step}, count_parameters(network))


def _official(options: Options) -> Contender:
    import torch

    from toolkit.venhancer.bench import official as bench_official
    from toolkit.venhancer.model.samplers import guide
    from toolkit.venhancer.model.schedule import VideoNoiseSchedule
    from toolkit.zoo.counting import count_parameters

    network = bench_official.build(Path(options.official or ""), official_config(options)).to(options.device)
    fill(network)
    given, schedule = inputs(options), VideoNoiseSchedule()
    t = torch.tensor([500], device=options.device)

    @torch.no_grad()
    def step() -> int:
        v, v_negative = (network(given["x"], t, text, **given["conditions"]) for text in given["texts"])
        schedule.clean(given["x"], guide(v, v_negative, 7.5, 0.2), 500)
        return 1

    return Contender({"step": step}, count_parameters(network))
