"""Scalars reach TensorBoard; an absent package is one clear line."""

import pytest

from toolkit.errors import UserError
from toolkit.runs.tracking import make_tracker
from toolkit.schema import Job


def test_none_is_no_tracker(tmp_path):
    assert make_tracker(tmp_path, Job()) is None


def test_tensorboard_holds_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard", reason="extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = make_tracker(tmp_path, Job(tracker="tensorboard"))
    tracker.log("denoiser", 10, {"loss": 0.5})
    tracker.log("denoiser", 20, {"loss": 0.25})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("denoiser/loss")] == [(10, 0.5), (20, 0.25)]


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracker=wandb: wandb is not installed; pip install .*\[wandb\]'"):
        make_tracker(tmp_path, Job(tracker="wandb"))
