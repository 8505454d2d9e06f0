"""The config of enhance-video: rates, sizes, what belongs together."""

from fractions import Fraction

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.paths import presets
from toolkit.venhancer.config import parse_fps

COMMAND = COMMANDS["enhance-video"]


@pytest.mark.parametrize("name", presets("enhance-video"))
def test_presets_compose(name):
    config = compose(COMMAND, [f"experiment={name}"])
    assert config.stages() and config.resolved().input


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("24", 24),
        ("24.0", 24),
        ("29.97", Fraction(30000, 1001)),
        ("29.970", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("25/2", Fraction(25, 2)),
        ("14.985", Fraction(15000, 1001)),
        ("0.5", Fraction(1, 2)),
        ("0.001", Fraction(1, 1000)),
        ("12.123456789012345", Fraction(12.123456789012345).limit_denominator(10**6)),  # 32 bits hold it
    ],
)
def test_rates(text, rate):
    assert parse_fps(text) == rate


@pytest.mark.parametrize(
    "text", ["fast", "0", "-3", "1/0", "nan", "inf", "30 fps", "", "5000", "0.0000001", "1e999999999", "1" * 5000]
)
def test_rates_that_are_none(text):
    with pytest.raises(UserError, match="fps="):
        parse_fps(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=a.mp4", "fps=24", "frame_factor=2"], "give one of them"),
        (
            ["stage=train", "network.asymmetric=false", "optim.base_num_steps=0"],
            r"optim\.base_num_steps=0: the control network would be trained on a base of random weights; give steps",
        ),
        (["input=a.mp4", "scale=0.5"], "the network enlarges; below 1 take backend=classic"),
        (["input=a.mp4", "scale=8.5"], r"scale=8\.5: must be at most 8"),
        (["input=a.mp4", "frame_factor=9"], "at most 8"),
        (["input=a.mp4", "scale=2", "width=640"], "give the scale or the size"),
        (["input=a.mp4", "noise_level=301"], "at most 300"),
        (["input=a.mp4", "noise_level=30"], "keys=upscaler is asked; add keys=network, or experiment=enhance_small"),
        (
            ["experiment=enhance_small", "input=a.mp4", "sampling.guidance=icg", "negative_prompt=dull"],
            "negative_prompt=dull: sampling.guidance=icg draws its own",
        ),
        (["input=a.mp4", "color_fix=none"], "color_fix: is of VEnhancer's network, and keys=upscaler is asked"),
        (["stage=all"], "trains VEnhancer's network; with keys=upscaler"),
        (["stage=train"], "network.asymmetric=true: training crops are square"),
        (["input=a.mp4", "backend=magic"], "choose one of generative, classic, bicubic"),
        (["reference=b.mp4"], r"belongs to input"),
        (["stage=train", "data.held_out=[]"], r"data.held_out=\[\]: name at least one clip"),
        (["input=a.mp4", "reference=b.mp4", "degrade.scale=2"], "the input itself is the reference"),
        (["input=a.mp4", "baselines=[nearest]"], "choose among bicubic, classic"),
        (["input=a.mp4", "encode.pix_fmt=rgb24"], "choose one of auto"),
        (["input=a.mp4", "scal=2"], "did you mean 'scale'"),
    ],
)
def test_what_does_not_fit_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        compose(COMMAND, words)


def test_a_backend_without_a_network_names_the_keys_of_the_network_that_are_set():
    from toolkit.venhancer.job import _load_parts

    assert _load_parts(compose(COMMAND, ["backend=classic"]), "cpu") == []
    idle = compose(COMMAND, ["backend=bicubic", "prompt=a bridge", "color_fix=adain", "sampling.guidance_scale=2"])
    expected = "backend=bicubic: uses no network, so without effect: prompt, color_fix, sampling"
    assert _load_parts(idle, "cpu") == [expected]


def test_the_demonstration_is_only_for_want_of_an_input():
    demo = compose(COMMAND, []).resolved()
    assert (
        (demo.keys, demo.between) == ("upscaler", "motion")
        and demo.input == "bikes"
        and demo.degrade.scale == 4
        and demo.duration_s == 1.5
    )
    with pytest.raises(UserError, match="between=network: needs keys=network"):
        compose(COMMAND, ["input=a.mp4", "keys=upscaler", "between=network"])
    own = compose(COMMAND, ["input=a.mp4"]).resolved()
    assert not own.degrade.active and own.duration_s is None


def test_fidelity_names_noise_levels():
    small = "experiment=enhance_small"
    levels = [compose(COMMAND, [small, f"fidelity={name}"]).noise for name in ("faithful", "balanced", "creative")]
    assert levels == sorted(levels) and compose(COMMAND, [small, "noise_level=0"]).noise == 0
