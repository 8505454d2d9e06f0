"""Two processes (gloo): one run folder, written by rank 0, the same bytes every time."""

import time

from tests.toyroom.harness import finish, record, result, run_here, start_ranks

WORDS = ["log_every_steps=4", "checkpoint_every_steps=5"]


def test_two_ranks_share_one_folder_repeat_themselves_and_resume_exactly(toy):
    assert finish(*start_ranks(2, *WORDS)) == [0, 0]
    [folder] = (toy / "runs/train-toy").iterdir()
    assert (toy / "output.txt").read_text().count("train: step 30/30") == 1
    assert record(folder)["status"] == "done"

    ranks = start_ranks(2, *WORDS, "step_time_s=0.03", "hydra.run.dir=one")
    while not list((toy / "one").glob("checkpoints/train/step-*")):
        time.sleep(0.01)
    for process in ranks:
        process.kill()
    assert finish(*ranks) == [-9, -9]
    assert finish(*start_ranks(2, *WORDS, "hydra.run.dir=one")) == [0, 0]
    assert result("one") == result(folder)

    assert run_here(*WORDS, "hydra.run.dir=single") == 0
    assert result("single") != result(folder)  # the ranks drew batches of their own


def test_sigterm_on_one_rank_stops_both_at_the_same_checkpoint(toy):
    ranks = start_ranks(2, *WORDS, "step_time_s=0.03", "optim.num_steps=200", "hydra.run.dir=one")
    while not (toy / "one/metrics.jsonl").exists():
        time.sleep(0.01)
    ranks[1].terminate()
    assert finish(*ranks) == [143, 143]
    assert record("one")["status"] == "interrupted" and record("one")["stages"]["train"]["step"] % 10 == 0


def test_a_refused_config_stops_every_rank(toy):
    assert finish(*start_ranks(2, "optim.lr=-1")) == [2, 2]
    assert run_here("hydra.run.dir=one") == 0
    assert finish(*start_ranks(2, "amplitude=2", "hydra.run.dir=one")) == [2, 2]
    assert "amplitude is 1.0 there, 2.0 here" in (toy / "output.txt").read_text()
