"""Checkpoints: whole or not there, damaged ones named and skipped, a full disk loses nothing."""

import contextlib
import hashlib
import subprocess
from pathlib import Path

import pytest
import torch

from tests.toyroom.harness import finish, record, result, run_here, start
from toolkit.errors import JobError, UserError
from toolkit.runs import checkpoint


def files(folder):
    return sorted(path.name[:14] for path in Path(folder).glob("step-*"))


def test_what_is_saved_is_loaded(tmp_path):
    state = {"step": 3, "model": {"w": torch.arange(5.0)}, "lists": [[1.5], []], "nothing": None}
    path = checkpoint.save(tmp_path, 3, state, keep=2)
    step, loaded = checkpoint.load(tmp_path)
    assert step == 3 and torch.equal(loaded.pop("model")["w"], torch.arange(5.0))
    assert loaded == {"step": 3, "lists": [[1.5], []], "nothing": None}
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_are_kept_and_those_of_round_steps_besides(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path / "two", step, {"step": step}, keep=2)
        checkpoint.save(tmp_path / "fours", step, {"step": step}, keep=2, keep_every=4)
        assert checkpoint.load(tmp_path / "two")[0] == step
    assert [int(name[5:]) for name in files(tmp_path / "two")] == [6, 7]
    assert [int(name[5:]) for name in files(tmp_path / "fours")] == [4, 6, 7]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.load(tmp_path / "none") is None and checkpoint.newest_good(tmp_path) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, damage):
    good = checkpoint.save(tmp_path, 1, {"w": torch.ones(200)}, keep=3)
    bad = checkpoint.save(tmp_path, 2, {"w": torch.zeros(200)}, keep=3)
    damage(bad)
    step, state = checkpoint.load(tmp_path)
    assert step == 1 and state["w"].sum() == 200
    assert f"{bad} is damaged" in caplog.text
    assert checkpoint.newest_good(tmp_path) == good


def test_a_damaged_later_checkpoint_never_displaces_a_good_one(tmp_path):
    for step in (1, 5):
        last = checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    truncate(last)
    checkpoint.save(tmp_path, 2, {"step": 2}, keep=1)
    assert files(tmp_path) == ["step-000000002"]
    assert checkpoint.load(tmp_path)[0] == 2


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / ".step-7.123.tmp").write_bytes(b"half")
    checkpoint.save(tmp_path, 8, {"step": 8}, keep=1)
    assert files(tmp_path) == ["step-000000008"] and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_unpickled(tmp_path):
    class Opens:
        def __reduce__(self):
            return open, ("/dev/null",)

    checkpoint.save(tmp_path, 1, {"evil": Opens()}, keep=1)
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint \(it holds more than tensors"):
        checkpoint.load(tmp_path)


def test_a_file_of_another_maker_with_the_right_checksum_is_one_line(tmp_path):
    """Every byte of the archive's end in turn: torch raises runtime errors for some, the system's for others."""
    path = checkpoint.save(tmp_path, 1, {"numbers": torch.zeros(2000)}, keep=1)
    whole, seen = path.read_bytes(), set()
    path.unlink()
    for place in range(1, 100):
        content = whole[:-place] + b"\xff" + whole[len(whole) - place + 1 :]
        path = tmp_path / f"step-000000001-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        path.write_bytes(content)
        try:
            checkpoint.load(tmp_path)
        except UserError as error:
            assert "cannot be read as a checkpoint (" in str(error)
            seen.add("Invalid argument" in str(error))
        path.unlink()
    assert seen == {True, False}


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(toy, capfd):
    run_here("hydra.run.dir=whole")
    run_here("optim.num_steps=20", "checkpoint_every_steps=5", "hydra.run.dir=hurt")
    [*_, last] = sorted((toy / "hurt/checkpoints/train").iterdir())
    flip_a_bit(last)
    assert run_here("hydra.run.dir=hurt") == 0
    error = capfd.readouterr().err
    assert f"{last.relative_to(toy)} is damaged" in error and "resuming after step 15" in error
    assert result("hurt") == result("whole")


def test_with_every_checkpoint_damaged_the_stage_starts_anew(toy, capfd):
    run_here("hydra.run.dir=whole")
    run_here("optim.num_steps=20", "hydra.run.dir=hurt")
    for path in (toy / "hurt/checkpoints/train").iterdir():
        truncate(path)
    assert run_here("hydra.run.dir=hurt") == 0
    assert "is damaged" in capfd.readouterr().err
    assert result("hurt") == result("whole")


def test_a_file_size_limit_keeps_the_last_good_checkpoint(toy):
    limit = 64 * 1024
    assert run_here("optim.num_steps=20", "hydra.run.dir=one") == 0  # small checkpoints fit
    [good] = (toy / "one/checkpoints/train").iterdir()
    before = good.read_bytes()
    [code] = finish(start("ballast=100000", "hydra.run.dir=two", file_limit=limit))
    lines = (toy / "output.txt").read_text().strip().splitlines()
    assert code == 1 and lines[-1].startswith("toolkit: error: two/checkpoints/train: the checkpoint of step")
    assert "Traceback" not in "\n".join(lines)
    assert list((toy / "two/checkpoints/train").iterdir()) == []
    with pytest.MonkeyPatch.context() as patch, limited(limit):
        patch.chdir(toy)
        folder = toy / "one/checkpoints/train"
        with pytest.raises(JobError, match=f"the last good one is {good}"):
            checkpoint.save(folder, 21, {"w": torch.zeros(100_000)}, keep=1)
    assert list(folder.iterdir()) == [good] and good.read_bytes() == before


@contextlib.contextmanager
def limited(size):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on_when_there_is_room(toy, small_disk):
    words = ["ballast=100000", "checkpoint_every_steps=10", "keep_checkpoints=1", f"hydra.run.dir={small_disk}/one"]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))  # one checkpoint of 400 kB fits, a second beside it does not
    [code] = finish(start(*words))
    last_line = (toy / "output.txt").read_text().strip().splitlines()[-1]
    assert code == 1 and last_line.startswith("toolkit: error:") and "the last good one is" in last_line
    assert files(small_disk / "one/checkpoints/train") == ["step-000000010"]
    filler.unlink()
    assert finish(start(*words)) == [0]
    assert finish(start("ballast=100000", "hydra.run.dir=whole")) == [0]
    assert result(small_disk / "one") == result("whole")
    assert record(small_disk / "one")["status"] == "done"


def test_a_disk_that_is_full_when_weights_are_written_is_one_line(toy, small_disk):
    [code] = finish(start("network.width=33000", f"hydra.run.dir={small_disk}/one", "checkpoint_every_steps=1000"))
    lines = (toy / "output.txt").read_text().strip().splitlines()
    assert code == 1 and lines[-1].startswith("toolkit: error:") and "Traceback" not in "\n".join(lines)
