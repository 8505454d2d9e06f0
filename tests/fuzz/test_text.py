"""Text corpora that were damaged, compressed beyond reason, or hold something else."""

import gzip
import json

import pytest

from tests.fuzz.box import cli
from tests.fuzz.harness import VALUES, Fuzz, damaged_bytes, damaged_value
from toolkit.data.config import TextData
from toolkit.data.text.corpora import load_text

ROOMS = ("stacking",)
NUM = 100

ROWS = [{"text": f"A document, number {number}.", "meta": {"redpajama_set_name": "C4"}} for number in range(5)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = arrow.BufferOutputStream()
    tables.write_table(arrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def read(folder, name="text_folder"):
    for document in load_text(TextData(name=name, path=str(folder))).documents():
        assert isinstance(document, str) and document.strip()


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "txt.gz", "jsonl.gz", "jsonl.zst", "parquet"])
def test_damaged(tmp_path, suffix):
    content = "é one\n\ntwo\n".encode() * 9 if suffix.startswith("txt") else jsonl(ROWS)
    if suffix == "parquet":
        content = parquet(ROWS)
    if suffix.endswith("zst"):
        pytest.importorskip("zstandard")
    fuzz = Fuzz(f"text, .{suffix}")
    path = tmp_path / f"bad.{suffix}"
    for number in range(NUM):
        whole = content
        if suffix.startswith("jsonl") and number % 2:
            whole = jsonl([damaged_value(row, fuzz.random) for row in ROWS])
        elif number % 2 and suffix == "txt.gz":
            whole = damaged_bytes(whole, fuzz.random)
        whole = gzip.compress(whole) if suffix.endswith("gz") else whole
        if suffix.endswith("zst"):
            import zstandard

            whole = zstandard.compress(whole)
        path.write_bytes(damaged_bytes(whole, fuzz.random) if number % 4 != 1 else whole)
        name = fuzz.random.choice(["text_folder", "text_slimpajama"])
        fuzz.boxed(path.read_bytes()[:80], lambda name=name: read(tmp_path, name), tmp_path, path.name)
    fuzz.check(least=NUM)


REFUSED = ("bomb.txt.gz", "bomb.jsonl.gz", "deep.jsonl", "nul.txt", "empty.txt")


def hostile():
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    files = {
        "bomb.txt.gz": gzip.compress(bytes(2**20), 9) * 3000,  # three gigabytes in three megabytes
        "bomb.jsonl.gz": gzip.compress(b'{"text": "') + gzip.compress(b"a" * 2**20, 9) * 3000,
        "deep.jsonl": deep,
        "number.jsonl": b'{"text": ' + b"9" * 10_000 + b"}\n",
        "surrogate.jsonl": b'{"text": "\\ud800"}\n',
        "nul.txt": bytes(4096),
        "utf16.txt": "text".encode("utf-16"),
        "latin.txt": "é".encode("latin-1"),
        "empty.txt": b"",
    }
    return files | {f"value_{n}.jsonl": b'{"text": %s}\n' % _plain(value) for n, value in enumerate(VALUES)}


def _plain(value):
    return json.dumps(value).encode() if value != 10**400 else b"1" + b"0" * 400


def test_hostile(tmp_path, monkeypatch):
    fuzz = Fuzz("text: bombs, deep nesting, other types")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    for name, content in hostile().items():
        home = tmp_path / "data"
        home.mkdir(exist_ok=True)
        path = home / name
        path.write_bytes(content)
        fuzz.boxed(name, lambda home=home: read(home), tmp_path, name)
        if name in REFUSED:
            words = ["experiment=grow_smoke", "data=text_folder", f"data.path={home}", "stage=pretrain"]
            act = cli("grow-llm", *words, "hydra.run.dir=run")
            fuzz.boxed(f"grow-llm, {name}", act, tmp_path, "data" if name == "empty.txt" else name)
            assert not (tmp_path / "run").exists()
        path.unlink()
    links = tmp_path / "links"
    links.mkdir()
    (links / "loop").symlink_to(links)
    (links / "gone.txt").symlink_to("/nowhere")
    (links / "device.txt").symlink_to("/dev/zero")
    fuzz.boxed("links", lambda: read(links), tmp_path, "links")
    fuzz.check(least=40)
