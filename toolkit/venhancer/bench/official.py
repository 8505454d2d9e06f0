"""The official VEnhancer network out of a checkout, on machines without its pinned stack.

Its module imports xformers and fairscale, which are not needed to compute: attention goes to torch's own fused kernel
(the best there is for it), and checkpoint wrappers, which only matter with gradients, are left out.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.venhancer.bench.shared import NETWORK


def build(checkout: Path, config: dict[str, Any]) -> Any:
    """``ControlledV2VUNet`` of the checkout with the constructor's arguments in ``config``, in eval mode.

    Raises UserError where the checkout needs a package that is absent.
    """
    module = _load(checkout / NETWORK)
    arguments = config | {"use_checkpoint": False}
    network = module.ControlledV2VUNet.__new__(module.ControlledV2VUNet)
    module.Vid2VidSDUNet.__init__(network, **arguments)
    control = module.VideoControlNet(**arguments)
    width, deepest = config["dim"], config["dim"] * config["dim_mult"][-1]
    control.input_hint_block = torch.nn.Conv2d(config["in_dim"], width, 3, padding=1)  # the release fixes 320
    control.add_dim = width
    control.middle_block_out = control.make_zero_conv(deepest)
    network.VideoControlNet = control
    return network.eval()


def _load(path: Path) -> Any:
    absent = {name for name in ("xformers", "fairscale") if importlib.util.find_spec(name) is None}
    sys.modules.update({name: one for name, one in _stand_ins().items() if name.split(".")[0] in absent})
    spec = importlib.util.spec_from_file_location("official_unet_v2v", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"official={path}: {error} (pip install einops)") from None
    return module


def _stand_ins() -> dict[str, ModuleType]:
    modules = {name: ModuleType(name) for name in ("xformers", "xformers.ops", "fairscale", "fairscale.nn")}
    modules["fairscale.nn.checkpoint"] = ModuleType("fairscale.nn.checkpoint")
    modules["xformers.ops"].memory_efficient_attention = _attention  # type: ignore[attr-defined]
    modules["xformers"].ops = modules["xformers.ops"]  # type: ignore[attr-defined]
    modules["fairscale.nn.checkpoint"].checkpoint_wrapper = lambda module: module  # type: ignore[attr-defined]
    return modules


def _attention(q: Any, k: Any, v: Any, attn_bias: Any = None, op: Any = None) -> Any:
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
