"""Where parity tests compute, and how: two variables of the environment say it; without them the processor, in float32.

TOOLKIT_TEST_DEVICE: a device of torch, as ``cuda``. TOOLKIT_TEST_PRECISION: of ``TOLERANCES``; ``fp32`` turns TF32 off.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

DEVICE = torch.device(os.environ.get("TOOLKIT_TEST_DEVICE", "cpu"))
PRECISION = os.environ.get("TOOLKIT_TEST_PRECISION", "fp32")
# Of outputs whose values are of order 1, or relative to the largest one. bf16 has 8 bits: one rounding is 4e-3, and a
# network's depth adds up; tf32 has 11. fp32's is each test's own on the processor and ten times that on a GPU, which
# sums in another order. No GPU has tried any of them yet; bf16's holds for a processor's autocast.
TOLERANCES = {"fp32": 0.0, "tf32": 2e-2, "bf16": 2e-1}

exact_arithmetic = pytest.mark.skipif(PRECISION != "fp32", reason="tokens and float64 are compared in fp32 alone")


def tolerance(exact: float) -> float:
    """What a test whose tolerance is ``exact`` allows here."""
    assert PRECISION in TOLERANCES, f"TOOLKIT_TEST_PRECISION={PRECISION}: choose one of {', '.join(TOLERANCES)}"
    return max(TOLERANCES[PRECISION], exact * (1 if DEVICE.type == "cpu" else 10))


def placed(what: Any) -> Any:
    """A network or tensor on the device, and so each of a dictionary; tf32 as asked."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = PRECISION == "tf32"
    if isinstance(what, dict):
        return {name: placed(one) for name, one in what.items()}
    return what.to(DEVICE) if isinstance(what, (nn.Module, torch.Tensor)) else what


def arithmetic() -> AbstractContextManager[Any]:
    """Around a forward pass: autocast for bf16."""
    return torch.autocast(DEVICE.type, torch.bfloat16) if PRECISION == "bf16" else nullcontext()
