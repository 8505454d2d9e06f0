"""The settings the authors used (Sadat et al. 2025, tables 7, 10 and 11).

Table 10 says that DiT drew random classes, while table 1's figure for it equals table 5's Gaussian row: both are near.
Not published, so not here: the scales of ICG and TSG together, and TSG on EDM, SDXL and unconditional latent diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.errors import UserError, did_you_mean

ICG: dict[str, dict[str, Any]] = {
    "dit-xl-2": {"guidance_scale": 1.4, "condition": "class"},
    "dit-cads": {
        "guidance_scale": 1.4,
        "condition": "class",
        "cads_scale": 0.15,
        "cads_tau1": 0.5,
        "cads_tau2": 0.9,
    },
    "stable-diffusion": {"guidance_scale": 3.0, "condition": "bank"},
    "pose-to-image": {"guidance_scale": 3.0, "condition": "gaussian"},
    "mdm": {"guidance_scale": 2.5, "condition": "gaussian"},
    "edm-cifar10": {"guidance_scale": 1.05, "condition": "class"},
    "edm2-xs": {"guidance_scale": 1.25, "condition": "class"},
}
"""Table 10. The scale of "dit-cads" is not published ("high guidance"): table 10's stands in its place."""

TSG: dict[str, dict[str, Any]] = {
    "dit-uncond": {"tsg_scale": 5.0, "noise_scale": 1.0, "alpha": 0.0, "t_min": 200, "t_max": 800},
    "dit-cond": {"tsg_scale": 2.5, "noise_scale": 2.0, "alpha": 1.0, "t_min": 0, "t_max": 1000},
    "sd-uncond": {"tsg_scale": 3.0, "noise_scale": 1.25, "alpha": 0.0, "t_min": 100, "t_max": 900},
    "sd-cond": {"tsg_scale": 4.0, "noise_scale": 3.0, "alpha": 0.25, "t_min": 400, "t_max": 1000},
}
"""Table 11. Time in thousandths; alpha 0 is the constant schedule."""


def look_up(table: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The settings of ``name``. Raises UserError for an unknown one."""
    if name not in table:
        raise UserError(f"preset {name!r}: {did_you_mean(name, table)}choose one of {', '.join(table)}")
    return table[name]
