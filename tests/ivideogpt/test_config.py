"""What train-ivideogpt refuses before any work, in one line that names the key."""

import pytest

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError

COMMAND = COMMANDS["train-ivideogpt"]

BAD = {
    "context_length=8": "num_frames=8: must be more than context_length=8",
    "tokenizer.norm_num_groups=5": "tokenizer.norm_num_groups=5: must divide every one of",
    "transformer.num_attention_heads=3": "transformer.num_attention_heads=3: must divide",
    "transformer.num_key_value_heads=3": "transformer.num_key_value_heads=3: must divide",
    "optim.tokenizer.num_future=8": "optim.tokenizer.num_future=8: must be at most num_frames - context_length = 7",
    "optim.tokenizer.num_steps=0": "optim.tokenizer.num_steps=0: keeps the tokenizer of init, and no init",
    "optim.transformer.betas=[0.9]": "optim.transformer.betas=[0.9]: must be two numbers",
    "tokenizer_loss.perceptual=lpip": "did you mean 'lpips'",
    "goal_conditioned=true": "goal_conditioned=true: context_length must be 2 or more",
    "measure.names=[prediktion]": "measure.names=prediktion: did you mean 'prediction'",
    "plan.planners=[cem,cme]": "plan.planners=cme: did you mean 'cem'",
    "plan.num_elites=1000": "plan.num_elites=1000: must be at most plan.num_candidates",
    "plan.replan_every=100": "plan.replan_every=100: must be at most plan.horizon",
    "action_conditioned=false": "plan.num_episodes: planning needs action_conditioned=true",
    "rollout.temperature=-1": "rollout.temperature=-1.0: must be greater than 0",
    "data.frame_step=0": "data.frame_step=0: must be at least 1",
    "data.size_px=4": "data.size_px=4: must be at least 8",
    "codebook.kind=emma": "did you mean 'ema'",
    "tokenizer_loss.gan_hidden=12": "tokenizer_loss.gan_hidden=12: must be a multiple of 8",
    "kept_frames=7": "kept_frames=7: must be fewer than a clip's num_frames - context_length = 7",
    "optim.transformer.own_tokens=2": "optim.transformer.own_tokens=2.0: must be at most 1",
    "tokenizer.width=3": "tokenizer.width: no such key",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_are_one_line(override):
    with pytest.raises(UserError) as caught:
        compose(COMMAND, ["plan.num_episodes=3", override])
    assert BAD[override] in str(caught.value) and "\n" not in str(caught.value)


def test_a_step_of_the_tokenizer_draws_frames_that_a_clip_has():
    """Fewer were drawn without a word; a run that trains no tokenizer need not say how many."""
    words = ["num_frames=8", "context_length=3", "kept_frames=0"]
    assert compose(COMMAND, [*words, "optim.tokenizer.num_future=5"]).optim.tokenizer.num_future == 5
    for more, most in (([], "num_frames - context_length = 5"), (["goal_conditioned=true"], "with a goal, = 4")):
        with pytest.raises(UserError, match=r"optim\.tokenizer\.num_future=6: must be at most .*" + most):
            compose(COMMAND, [*words, *more, "optim.tokenizer.num_future=6"])
    assert compose(COMMAND, ["model=RUN", "num_frames=4", "optim.tokenizer.num_future=7"]).num_frames == 4


def test_planning_by_reward_needs_the_head():
    with pytest.raises(UserError, match=r"plan\.objective=reward: needs reward_head=true"):
        compose(COMMAND, ["plan.num_episodes=3", "plan.objective=reward", "reward_head=false"])


def test_a_goal_and_a_gap_exclude_each_other():
    with pytest.raises(UserError, match="context_gap: a goal-conditioned clip has none"):
        compose(COMMAND, ["goal_conditioned=true", "context_length=2", "context_gap=3"])


def test_stages_of_a_trained_model_train_nothing():
    config = compose(COMMAND, ["model=runs/x", "plan.num_episodes=2"])
    assert config.stages() == ["rollout", "plan", "measure"]
    with pytest.raises(UserError, match="model=runs/x: it is trained"):
        compose(COMMAND, ["model=runs/x", "stage=transformer"])


def test_planning_is_a_stage_only_where_it_is_asked_for():
    assert "plan" not in compose(COMMAND, ["plan.num_episodes=0"]).stages()
    with pytest.raises(UserError, match=r"stage=plan: plan\.num_episodes=0 plans nothing"):
        compose(COMMAND, ["stage=plan", "plan.num_episodes=0"])
    assert compose(COMMAND, ["stage=transformer"]).stages() == ["tokenizer", "transformer"]
