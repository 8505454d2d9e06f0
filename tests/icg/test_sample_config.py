"""The config of sample-icg: what may be asked, what is compared, and errors in one line."""

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.icg.config import SMALL_CURVE
from toolkit.icg.methods import ICG, METHODS, ICGAndTSG


def config(*words):
    return compose(COMMANDS["sample-icg"], list(words))


def names(*words):
    return [one.method for one in config(*words).methods()]


def test_the_default_compares_the_five_and_a_given_model_is_compared_with_no_guidance():
    assert names() == ["none", "cfg", "icg", "tsg", "icg_tsg"]
    assert names("model=runs/mine") == ["none", "icg"] == names("model=runs/mine", "guidance=icg")
    assert names("model=runs/mine", "guidance=none") == ["none"] and config().stages()[0] == "models"
    assert config("model=x").stages() == ["sample", "report"]


def test_scales_are_numbers_or_lists_and_are_shared_by_methods_on_the_condition():
    by_name = {one.method: one for one in config("guidance.scale=[1.25,2]").methods()}
    assert by_name["icg"].scales == by_name["cfg"].scales == by_name["icg_tsg"].scales == [1.25, 2]
    assert by_name["tsg"].scales == [5.0], "time-step guidance weighs something else"
    settings = {one.method: one for one in config("compare=[{method: tsg, scale: 3, alpha: 0}]").methods()}
    assert settings["tsg"].scale == 3 and settings["tsg"].alpha == 0 and set(settings) == {"tsg", "icg"}


def test_settings_of_compared_methods_are_of_their_types():
    entry = "{method: icg, std: 0.5, fields: [latents], num_draws: 2, sigma_min: 1, exclude_own: true}"
    (made,) = [one for one in config("guidance=tsg", f"compare=[{entry}]").methods() if one.method == "icg"]
    assert (made.std, made.fields, made.num_draws, made.sigma_min) == (0.5, ["latents"], 2, 1)
    own = config("guidance=icg_tsg", "guidance.tsg.t_min=200").guidance
    assert own.tsg.interval["t_min"] == 200 and own.interval["t_min"] == 0, "each part has an interval of its own"


def test_what_is_measured_by_itself_is_only_the_small_models():
    assert config().repeats == 2 and config().curve_of(ICG()) == SMALL_CURVE and config().curve_of(ICGAndTSG()) == []
    given = config("model=x")
    assert given.repeats == 1 and given.curve_of(ICG()) == []
    assert config("model=x", "measure.curve=[2]", "measure.num_repeats=3").curve_of(ICGAndTSG()) == [2]


def test_every_method_is_an_option_of_the_group():
    for name, kind in METHODS.items():
        assert isinstance(config("model=x", f"guidance={name}").guidance, kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["guidance.scale=abc"], "guidance.scale=abc: must be a number"),
        (["guidance.scale=-1"], "guidance.scale=-1: must be a number of at least 0"),
        (["guidance.scale=[]"], "guidance.scale=\\[\\]"),
        (["guidance.scale=[2,2]"], "must be different"),
        (["guidance.scale=[1,nan]"], "guidance.scale=nan"),
        (["guidance=icq"], "did you mean 'icg'"),
        (["guidance.scal=2"], "guidance.scal: no such key; did you mean 'guidance.scale'"),
        (["guidance=cfg", "guidance.num_draws=2"], "guidance.num_draws: no such key"),
        (["guidance.condition=klass"], "guidance.condition=klass: did you mean 'class'"),
        (["guidance.t_min=500", "guidance.t_max=400"], "guidance.t_min=500.0: must not exceed guidance.t_max"),
        (["guidance.sigma_min=5", "guidance.sigma_max=1"], "guidance.sigma_min=5"),
        (["compare=[none,apg]"], "compare=apg"),
        (["compare=[{method: tsg, alfa: 1}]"], "tsg has no setting alfa; did you mean 'alpha'"),
        (["compare=[{method: tsg, label: mine}]"], "tsg has no setting label; "),
        (["compare=[{method: cfg, scale: -2}]"], "guidance.scale=-2"),
        (["compare=[{method: tsg, alpha: abc}]"], "compare: tsg: alpha=abc: must be float"),
        (["compare=[{method: tsg, alpha: -1}]"], "compare: tsg: alpha=-1: must be at least 0"),
        (["compare=[{method: tsg, max_layers: 2.5}]"], "compare: tsg: max_layers=2.5: must be int | None"),
        (["compare=[{method: tsg, time_embedding_modules: [1.5, {}]}]"], "must be list.str. | None"),
        (["compare=[{method: icg, condition: klass}]"], "compare: icg: condition=klass: did you mean 'class'"),
        (["compare=[{method: icg, exclude_own: 1}]"], "compare: icg: exclude_own=1: must be bool"),
        (["compare=[{method: icg, num_draws: true}]"], "compare: icg: num_draws=True: must be int"),
        (["guidance=icg_tsg", "guidance.tsg.scale=[2,3]"], "guidance.tsg.scale=.*must be one number"),
        (["guidance=icg_tsg", "guidance.tsg.rescale=0.5"], "guidance.tsg.rescale: set guidance.rescale, which holds"),
        (["guidance=cfg_tsg", "guidance.tsg.t_min=200"], "guidance.tsg.t_min: set guidance.t_min, which holds"),
        (["guidance=cfg_slg", "guidance.slg.stop=0.5"], "guidance.slg.stop: set guidance.stop, which holds for both"),
        (["sampling.sigma_min=100"], "sampling.sigma_min=100.0: must be less than sampling.sigma_max"),
        (["prompts=[a cat]"], "prompts=.*needs a model"),
        (["model=exact", "size_px=64"], "size_px=64: needs a model"),
        (["model=exact", "vae=here"], "vae=here: needs a model"),
        (["data=digits", "data.class_labels=false"], "the small models are class-conditional"),
        (["measure.curve=[2,2]"], "measure.curve"),
        (["sampling.num_samples=0"], "sampling.num_samples=0: must be at least 1"),
        (["model=exact", "data=digits"], "model=exact has data of its own"),
        (["experiment=disco_smoke"], "a preset of train-disco"),
    ],
)
def test_bad_values_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        config(*words)
    assert "\n" not in str(error.value)
