"""Checkpoints of a run that were damaged, made by somebody else or hold pickles, before a run goes on from them."""

import hashlib
import io
import pickle
import shutil
import zipfile

import pytest
import torch

from tests.fuzz.harness import VALUES, Fuzz, damaged_bytes
from tests.toyroom.harness import in_toy_folder, run_here
from toolkit.stacking.checkpoints.open import open_weights
from toolkit.zoo.video.import_venhancer import import_venhancer

NUM = 60


class Evil:
    def __reduce__(self):
        return (open, ("MADE", "w"))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def repacked(whole, change, method=zipfile.ZIP_STORED):
    """A torch file with the bytes of its members changed by ``change(name, content)``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def foreign(whole):
    """Files that are no checkpoint of ours, for every reader of torch's files."""
    evil = pickle.dumps(Evil())
    yield from (
        evil,
        saved(Evil()),
        saved({"state.model": Evil()}),
        saved({"step": Evil}),
        saved([1]),
        saved(None),
        b"",
    )
    yield repacked(whole, lambda name, content: evil if name.endswith("data.pkl") else content)
    yield repacked(whole, lambda name, content: content[:-9] if "/data/" in name else content)
    yield repacked(whole, lambda name, content: bytes(2**28) if "/data/" in name else content, zipfile.ZIP_DEFLATED)
    yield repacked(whole, lambda name, content: b"" if name.endswith("data.pkl") else content)
    yield saved(torch.zeros(3))
    yield saved({"a": torch.zeros(1).expand(2**40)})
    yield saved({"a": torch.sparse_coo_tensor(torch.tensor([[2**40]]), torch.ones(1), (2**41,))})
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    yield saved(deep)


def place(folder, content, step=2):
    """The only checkpoint of the run, under the name that its content has."""
    home = folder / "one/checkpoints/train"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("begun")
    with in_toy_folder(folder):
        assert run_here("optim.num_steps=2", "checkpoint_every_steps=1", "hydra.run.dir=one") == 0
    return folder


def ended():
    raise SystemExit(run_here("optim.num_steps=4", "checkpoint_every_steps=1", "hydra.run.dir=one"))


def test_of_a_run(begun, toy):
    fuzz = Fuzz("checkpoints of a run")
    [good] = list((begun / "one/checkpoints/train").glob("step-000000002-*.pt"))
    whole = good.read_bytes()
    content = torch.load(io.BytesIO(whole), weights_only=True)
    wrong = [{**content, key: fuzz.random.choice(VALUES)} for key in content for _ in range(6)]
    wrong += [{name: value for name, value in content.items() if name != key} for key in content]
    wrong += [{**content, "world_size": size} for size in (0, -1, 10**30, 2**31)]
    wrong += [{**content, "pending": [{"loss": value}]} for value in (3, "abc", [None], {}, [[1.0]])]
    model = content["state.model"]
    wrong += [{**content, "state.model": {**model, "0.weight": torch.zeros(shape)}} for shape in ((0,), (2**10, 2**10))]
    files = [*foreign(whole), *map(saved, wrong), *(damaged_bytes(whole, fuzz.random) for _ in range(NUM))]
    for number, content in enumerate(files):
        shutil.rmtree("one", ignore_errors=True)
        shutil.copytree(begun / "one", "one")
        place(toy, content)
        fuzz.boxed(number, ended, toy, "checkpoints/train")
    for step in (0, 10**9 - 1):
        shutil.rmtree("one")
        shutil.copytree(begun / "one", "one")
        place(toy, whole, step)
        fuzz.boxed(f"step {step}", ended, toy, "one")
    assert not list(toy.rglob("MADE*"))
    fuzz.check(least=NUM)


def test_of_others(tmp_path, monkeypatch):
    """``pytorch_model.bin`` that is grown, and official ``.pt`` files that are imported."""
    fuzz = Fuzz("torch files of others")
    monkeypatch.chdir(tmp_path)
    whole = saved({"a": torch.zeros(9), "b": torch.ones(3, 3)})
    for content in [*foreign(whole), *(damaged_bytes(whole, fuzz.random) for _ in range(NUM))]:
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        (tmp_path / "official.pt").write_bytes(content)
        fuzz.boxed("bin", lambda: open_weights(tmp_path), tmp_path, "pytorch_model.bin")
        fuzz.boxed("pt", lambda: import_venhancer("official.pt", "out"), tmp_path, "official.pt")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("MADE*"))
    fuzz.check(least=NUM)
