"""GGUF files that were damaged or whose counts, lengths and shapes lie."""

import pytest

from tests.fuzz.harness import Fuzz, damaged_bytes
from tests.stacking.checkpoints.test_gguf_header import HOSTILE
from tests.stacking.models import make_model
from tests.stacking.test_sources import make_bpe, write_gguf
from toolkit.stacking.checkpoints.open import open_checkpoint

NUM = 120


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_gguf(tmp_path, has_tokenizer):
    fuzz = Fuzz("GGUF with a tokenizer" if has_tokenizer else "GGUF")
    path = tmp_path / "bad.gguf"
    write_gguf(path, make_model(), *([make_bpe()] if has_tokenizer else []))
    whole = path.read_bytes()
    damaged = [damaged_bytes(whole[:1500], fuzz.random) + whole[1500:] for _ in range(NUM)]
    block_count = whole.index(b"llama.block_count") + len(b"llama.block_count") + 4
    sizes = [
        whole[:block_count] + size.to_bytes(4, "little") + whole[block_count + 4 :] for size in (0, 10**4, 2**32 - 1)
    ]
    for number, content in enumerate([*HOSTILE.values(), *sizes, *damaged]):
        path.write_bytes(content)
        fuzz.boxed((number, content[:60]), lambda: open_checkpoint(path), tmp_path, path.name)
    fuzz.check(least=NUM)
