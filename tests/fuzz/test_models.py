"""Folders of weights whose config.json or safetensors were damaged, lie about sizes or name code."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from tests.fuzz.box import cli
from tests.fuzz.harness import Fuzz, damaged_bytes, damaged_value
from tests.toyroom.harness import REPO
from toolkit import zoo
from toolkit.stacking.checkpoints.open import open_checkpoint
from toolkit.venhancer.pipeline import load_pipeline

ROOMS = ("disco", "icg", "stacking", "ivideogpt", "venhancer")
NUM = 40  # of each network
BEFORE = REPO / "tests/files/before"
SIZES = [0, -1, 2, 3, 7, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, True, "8", None, [8], [10**9, 10**9], []]
CODE = {
    "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil--evil.Evil"},
    "_target_": "os.system",
    "_class_name": "evil.Evil",
    "trust_remote_code": True,
    "architectures": ["os.system"],
    "_name_or_path": "evil/evil",
    "base_model_name_or_path": "evil/evil",
    "quantization_config": {"quant_method": "awq"},
    "attn_implementation": "evil/evil:evil",
    "_attn_implementation": "evil/kernels",
    "custom_pipelines": {"evil": {"impl": "evil.py"}},
    "torch_dtype": "os.system",
    "dtype": "complex64",
}
NETWORKS = {
    "denoiser": "train-disco/run/model/denoiser",
    "encoder": "train-disco/run/model/encoder",
    "prior": "train-disco/run/model/prior",
    "conditional denoiser": "sample-icg/run/model/denoiser",
    "tokenizer of a world": "train-ivideogpt/run/model/tokenizer",
    "world": "train-ivideogpt/run/model",
    "enhancer": "enhance-video/run/model",
    "language model": "grow-llm/run/model/base",
}


def _one(name):
    """``an encoder``, ``a prior``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def read(name, folder):
    if name == "enhancer":
        return load_pipeline(str(folder))
    if name == "language model":
        found = open_checkpoint(folder).tensors
        return [found.read(one) for one in found.infos]
    return zoo.load(folder)


@pytest.fixture(params=NETWORKS)
def network(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = shutil.copytree(BEFORE / NETWORKS[request.param], tmp_path / "model")
    code = "open('MADE', 'w')\nclass Evil:\n    pass\n"
    for place in (tmp_path, folder):
        (place / "evil.py").write_text(code)
    read(request.param, folder)  # once whole, and what it imports is imported before the forks
    return request.param, folder


def configs(folder):
    return [
        path for path in sorted(folder.rglob("*.json")) if "token" not in path.name and path.name != "training.json"
    ]


def lying(config, dice):
    """``config`` with one size, or one name of code, changed."""
    changed = json.loads(json.dumps(config))
    if dice.random() < 0.4:
        name = dice.choice(list(CODE))
        return {**changed, name: CODE[name]}
    sizes = [name for name, value in changed.items() if isinstance(value, (int, list)) and not isinstance(value, bool)]
    if sizes:
        changed[dice.choice(sizes)] = dice.choice(SIZES)
    return changed


def test_configs(network, tmp_path):
    name, folder = network
    fuzz = Fuzz(f"config.json of {_one(name)}")
    paths = configs(folder)
    for number in range(NUM):
        path = fuzz.random.choice(paths)
        whole = path.read_bytes()
        how = number % 6
        content = (
            damaged_bytes(whole, fuzz.random)
            if how == 0
            else json.dumps((damaged_value if how < 3 else lying)(json.loads(whole), fuzz.random)).encode()
        )
        path.write_bytes(content)
        fuzz.boxed(
            (str(path.relative_to(folder)), _change(whole, content)), lambda: read(name, folder), tmp_path, "model"
        )
        path.write_bytes(whole)
    assert not list(tmp_path.rglob("MADE*"))
    fuzz.check(least=NUM)


def _change(before, after):
    """What is other in the new config, in short."""
    try:
        old, new = json.loads(before), json.loads(after)
        return {key: new.get(key, "absent") for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    except (ValueError, AttributeError):
        return after[:200]


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def lying_weights(whole):
    """Files that say other things than they hold; ``whole`` is a good one."""
    length = int.from_bytes(whole[:8], "little")
    good, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = [name for name in good if name != "__metadata__"]
    first, last = names[0], names[-1]

    def with_entry(name, **changes):
        return header(**{**good, name: {**good[name], **changes}}) + data

    start, end = good[last]["data_offsets"]
    yield from (b"", whole[:7], (2**63).to_bytes(8, "little") + whole[8:], (2**40).to_bytes(8, "little"))
    yield from (header() + data, b"\x02\0\0\0\0\0\0\0{}", (50_000).to_bytes(8, "little") + b"[" * 50_000)
    yield (60_000).to_bytes(8, "little") + b'{"a":' * 12_000
    yield from (
        with_entry(last, shape=shape) for shape in ([10**11], [2**62, 4], [-1], [0], ["a"], [[1]], None, 3, [1.5])
    )
    yield from (with_entry(last, dtype=dtype) for dtype in ("F64", "I8", "F8_E4M3", "OBJECT", 3, None, "BOOL", "C64"))
    yield from (
        with_entry(last, data_offsets=span) for span in ([0, end - start], [start, 10**12], [-8, 8], [end, start])
    )
    yield from (with_entry(last, data_offsets=span) for span in ([start], "ab", None, [start + 1, end + 1], [1.0, 2.0]))
    yield header(**{**good, "evil": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}) + data
    yield header(**{name: value for name, value in good.items() if name != first}) + data
    yield (
        header(**{name: {**value, "shape": value["shape"][::-1]} for name, value in good.items() if name in names})
        + data
    )
    yield header(**dict.fromkeys(good, 3)) + data
    yield save({"a" * 10_000: np.zeros(3, np.float32), "": np.zeros(3, np.float32)})
    yield whole + b"more"
    nan = np.full(len(data) // 4, np.nan, np.float32).tobytes()
    yield whole[: 8 + length] + nan + data[len(nan) :]


def test_weights(network, tmp_path):
    name, folder = network
    fuzz = Fuzz(f"safetensors of {_one(name)}")
    for path in sorted(folder.rglob("*.safetensors")):
        whole = path.read_bytes()
        damaged = [damaged_bytes(whole[:4000], fuzz.random) + whole[4000:] for _ in range(NUM // 4)]
        for content in [*lying_weights(whole), *damaged]:
            path.write_bytes(content)
            fuzz.boxed((str(path.relative_to(folder)), content[:300]), lambda: read(name, folder), tmp_path, "model")
        path.write_bytes(whole)
        with open(path, "ab") as file:  # a hole: nothing on the disk
            file.truncate(100 * 2**30)
        fuzz.boxed((path.name, "100 GB"), lambda: read(name, folder), tmp_path, "model")
        path.unlink()
        fuzz.boxed((path.name, "absent"), lambda: read(name, folder), tmp_path, "model")
        path.write_bytes(whole)
    fuzz.check(least=40)


COMMANDS = {
    "denoiser": [("zoo", "show", "model"), ("sample-icg", "experiment=icg_smoke", "model=model", "hydra.run.dir=run")],
    "conditional denoiser": [("sample-icg", "experiment=icg_smoke", "model=model", "hydra.run.dir=run")],
    "world": [
        ("play", "model", "--port", "0"),
        ("train-ivideogpt", "experiment=ivideogpt_smoke", "init=model", "hydra.run.dir=run"),
        ("grow-llm", "experiment=grow_smoke", "stage=grow", "factor=2", "model=model", "out=out", "hydra.run.dir=run"),
    ],
    "enhancer": [("enhance-video", "experiment=enhance_smoke", "model=model", "hydra.run.dir=run")],
    "language model": [
        ("grow-llm", "experiment=grow_smoke", "stage=grow", "factor=2", "model=model", "out=out", "hydra.run.dir=run")
    ],
}


def test_commands(network, tmp_path):
    name, folder = network
    if name not in COMMANDS:
        return
    fuzz = Fuzz(f"commands with a damaged {name}")
    path = sorted(folder.rglob("*.safetensors"))[-1]
    config = path.parent / "config.json"
    whole, weights = config.read_bytes(), path.read_bytes()
    last = list(lying_weights(weights))[7]
    for words in COMMANDS[name]:
        for content in (b"", b"[]", b"{", b"[" * 100_000, b'{"_class_name": "os.system"}', b"\xff"):
            config.write_bytes(content)
            fuzz.boxed((words[0], content[:30]), cli(*words), tmp_path, "model")
        config.write_bytes(whole)
        for content in (b"", weights[:-5], last):
            path.write_bytes(content)
            fuzz.boxed((words[0], content[:30]), cli(*words), tmp_path, "model")
        path.write_bytes(weights)
        assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
    fuzz.check(least=9)
