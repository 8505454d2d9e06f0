"""``toolkit train-ivideogpt`` from end to end, every stage and kind of training, on the smallest networks."""

import json
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.toyroom.harness import finish, record, start, start_ranks
from toolkit import zoo
from toolkit.data.episodes.episode import Episode, write_episode
from toolkit.data.episodes.push_sprite import PushSprite
from toolkit.data.episodes.push_sprite import record as record_push
from toolkit.launch import launch

SMOKE = ["experiment=ivideogpt_smoke", "seed=5"]
SMALL = [
    "optim.tokenizer.num_steps=4", "codebook.warmup_steps=2", "optim.transformer.num_steps=4", "data.num_train=8",
    "data.num_valid=4", "optim.transformer.cached_clips=8", "plan.num_episodes=0", "measure.num_clips=4",
    "measure.names=[tokenizer]", "rollout.num_clips=2",
]  # fmt: skip


def train(*words):
    return launch("train-ivideogpt", [*SMOKE, *words])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_smoke_preset_leaves_a_whole_run_folder(capfd):
    assert train("hydra.run.dir=one") == 0
    out = capfd.readouterr().out
    assert "predicted frames" in out and "one/samples/rollout.mp4" in out and "toolkit play one" in out
    saved = record("one")
    assert saved["status"] == "done"
    stages = ["tokenizer", "transformer", "rollout", "plan", "measure"]
    assert {name: stage["status"] for name, stage in saved["stages"].items()} == dict.fromkeys(stages, "done")
    wanted = ["tokenizer.psnr.future", "decoupling.motion.exchanged", "prediction.psnr.copy_last", "actions.r.x.agent"]
    wanted += ["reward.r2", "reward.rank", "plan.success.cem", "plan.progress.random"]
    assert set(wanted) <= set(saved["metrics"]) and all(np.isfinite(list(saved["metrics"].values())))
    assert saved["perceptual_distance"] == "multi-scale gradient difference" and saved["data"]["env"] == "push_sprite"
    world = zoo.load("one")
    assert world.spec.T0 == 1 and world.spec.action_dim == 2 and world.spec.has_reward
    with av.open("one/samples/rollout.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 4
    assert list(Path("one/samples").glob("*.gif")) and list(Path("one/samples").glob("*.png"))
    assert "video/mp4" in Path("one/report.html").read_text()
    logged = [json.loads(line) for line in Path("one/metrics.jsonl").read_text().splitlines()]
    keys = {key for line in logged for key in line}
    assert {"context_perplexity", "dynamics_usage", "adversarial", "valid_rise_with_other_actions", "frame_1"} <= keys


def test_stages_one_after_the_other_equal_all_at_once_and_a_trained_model_is_used_again():
    assert train(*SMALL, "hydra.run.dir=whole") == 0
    for stage in ("tokenizer", "transformer", "all"):
        assert train(*SMALL, f"stage={stage}", "hydra.run.dir=parts") == 0
    for path in Path("whole").glob("model/**/*.safetensors"):
        assert path.read_bytes() == (Path("parts") / path.relative_to("whole")).read_bytes()
    assert Path("parts/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    assert train(*SMALL, "model=whole", "hydra.run.dir=again") == 0
    assert record("again")["metrics"] == record("whole")["metrics"]
    assert Path("again/samples/rollout.gif").read_bytes() == Path("whole/samples/rollout.gif").read_bytes()


def test_more_steps_train_on_and_what_was_built_on_them_starts_anew():
    assert train(*SMALL, "hydra.run.dir=one") == 0
    first = Path("one/model/transformer/model.safetensors").read_bytes()
    assert train(*SMALL, "optim.transformer.num_steps=6", "hydra.run.dir=one") == 0
    assert record("one")["stages"]["transformer"]["step"] == 6
    assert Path("one/model/transformer/model.safetensors").read_bytes() != first


@pytest.mark.slow
@pytest.mark.parametrize("kill_after_s", [0.3, 2.0])
def test_killed_and_resumed_equals_the_uninterrupted_run(kill_after_s):
    assert train("hydra.run.dir=whole") == 0
    process = start(*SMOKE, "checkpoint_every_steps=1", "hydra.run.dir=one", command="train-ivideogpt")
    while not Path("one/metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(kill_after_s)
    process.kill()
    finish(process)
    assert train("hydra.run.dir=one") == 0
    for path in Path("whole").glob("model/**/*.safetensors"):
        assert path.read_bytes() == (Path("one") / path.relative_to("whole")).read_bytes()
    assert Path("one/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    assert record("one")["metrics"] == record("whole")["metrics"]


@pytest.mark.slow
def test_two_processes_share_one_run_and_stay_alike():
    assert finish(*start_ranks(2, *SMOKE, "hydra.run.dir=one", command="train-ivideogpt")) == [0, 0]
    saved = record("one")
    assert saved["status"] == "done" and np.isfinite(list(saved["metrics"].values())).all()


def test_action_free_pre_training_then_actions_and_rewards():
    assert train(*SMALL, "action_conditioned=false", "reward_head=false", "hydra.run.dir=free") == 0
    assert zoo.load("free").spec.action_dim == 0
    words = ["init=free", "optim.tokenizer.num_steps=0", "optim.transformer.num_steps=2"]
    assert train(*SMALL, *words, "hydra.run.dir=tuned") == 0
    free, tuned = zoo.load("free"), zoo.load("tuned")
    assert tuned.spec.action_dim == 2 and tuned.spec.has_reward
    for name, weight in free.tokenizer.state_dict().items():
        assert torch.equal(weight, tuned.tokenizer.state_dict()[name])
    assert train(*SMALL, "init=tuned", "action_conditioned=false", "reward_head=false", "hydra.run.dir=x") == 2


@pytest.mark.slow
def test_the_tokenizer_alone_is_adapted_with_frozen_codebooks_and_the_transformer_kept():
    assert train(*SMALL, "hydra.run.dir=base") == 0
    words = ["init=base", "codebook.frozen=true", "codebook.warmup_steps=0", "optim.transformer.num_steps=0"]
    assert train(*SMALL, *words, "data.agent_shape=diamond", "hydra.run.dir=adapted") == 0
    base, adapted = zoo.load("base"), zoo.load("adapted")
    for name, weight in base.transformer.state_dict().items():
        assert torch.equal(weight, adapted.transformer.state_dict()[name])
    for name, weight in base.tokenizer.state_dict().items():
        assert torch.equal(weight, adapted.tokenizer.state_dict()[name]) == ("quantize.embedding" in name)


@pytest.mark.slow
def test_goal_conditioned_with_two_context_frames_in_both_orders():
    words = ["goal_conditioned=true", "context_length=2", "num_frames=5", "transformer.max_position_embeddings=256"]
    for order in ("paper", "release_training"):
        assert train(*SMALL, *words, f"goal_order={order}", "measure.names=[goal]", f"hydra.run.dir={order}") == 0
        assert zoo.load(order).spec.goal_conditioned and record(order)["metrics"]["goal.mse.ratio"] > 0


@pytest.mark.slow
def test_long_roll_outs_renew_their_context_where_asked_and_record_it():
    assert train(*SMALL, "hydra.run.dir=one") == 0
    words = ["model=one", "stage=rollout", "rollout.num_frames=6"]
    assert train(*SMALL, *words, "hydra.run.dir=two") == 2
    assert train(*SMALL, *words, "rollout.on_overflow=recontext", "hydra.run.dir=two") == 0
    assert record("two")["rollout"] == {"frames": 6, "context_renewed": 1}
    with av.open("two/samples/rollout.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 7


def test_a_transformer_refuses_a_tokenizer_that_it_was_not_trained_with():
    assert train(*SMALL, "stage=transformer", "hydra.run.dir=one") == 0
    assert train(*SMALL, "seed=6", "stage=transformer", "hydra.run.dir=two") == 0
    shutil.copytree("two/model/tokenizer", "one/model/tokenizer", dirs_exist_ok=True)
    assert train(*SMALL, "hydra.run.dir=one") == 2


def test_own_episodes_are_trained_on_and_bad_ones_refused_or_left_out(folder, capfd):
    made = record_push(PushSprite(16), range(12), 6)
    for number in range(12):
        write_episode(folder / "mine" / f"{number:02d}.npz", Episode(made.frames[number], made.actions[number]))
    words = [*SMALL, "data.name=episodes_folder", "data.path=mine", "reward_head=false", "data.num_valid=2"]
    assert train(*words, "hydra.run.dir=one") == 0
    assert record("one")["data"]["env"] is None and zoo.load("one").spec.resolution == 16
    (folder / "mine" / "03.npz").write_bytes(b"torn")
    capfd.readouterr()
    assert train(*words, "hydra.run.dir=two") == 2
    said = capfd.readouterr().err
    assert "mine/03.npz: truncated" in said and "data.skip_bad=true" in said and not Path("two").exists()
    assert train(*words, "data.skip_bad=true", "hydra.run.dir=three") == 0
    assert len(record("three")["data"]["left_out"]) == 1


REFUSED = {
    "num_frames=30": "num_frames=30: makes",
    "rollout.num_frames=7": "rollout.num_frames=7: the transformer's positions hold 3",
    "rollout.num_frames=9": "rollout.num_frames=9: of the held-out episodes, no episode has 10 frames",
    "tokenizer.patch_size=3": "patch_size=3: must divide",
    "init=nowhere": "nowhere: not found",
    "model=nowhere": "nowhere: not found",
    "tokenizer_loss.perceptual=lpips": "tokenizer_loss.perceptual_path: LPIPS needs its weights",
    "data.name=episodes_folder": "data.path: data.name=episodes_folder needs the folder of episodes",
    "data.name=mnist": "data.name=mnist: a set of images; train-ivideogpt reads episodes: push_sprite",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(word, capfd):
    assert train(*SMALL, word, "hydra.run.dir=one") == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("toolkit: error:")]
    assert REFUSED[word] in line


def test_a_dry_run_counts_the_papers_networks_without_data(capfd):
    from toolkit.launch import dry_run

    assert dry_run("train-ivideogpt", ["experiment=ivideogpt_oxe64"]) == 0
    out = capfd.readouterr().out.replace(",", "")
    assert "114159174" in out and "138434304" in out and "751" in out
    assert dry_run("train-ivideogpt", ["experiment=ivideogpt_oxe256"]) == 0
    assert "310472774" in capfd.readouterr().out.replace(",", "")


def test_a_dry_run_with_a_model_tells_of_that_model_and_of_no_training(capfd):
    from toolkit.launch import dry_run

    words = ["model=push_world", "stage=rollout", "transformer.hidden_size=48"]
    assert dry_run("train-ivideogpt", words) == 0
    out = capfd.readouterr().out
    assert "1417526" in out and "711297" in out and "Adam" not in out
