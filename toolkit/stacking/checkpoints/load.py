"""Models and tokenizers through transformers: a folder, a GGUF file, or a hub's repository."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import UserError
from toolkit.installation import install_hint

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.tiktoken")
HISTORY_FILE = "training.json"  # what the network has cost so far (curves.Spent)
CARRIED_FILES = (*TOKENIZER_FILES, HISTORY_FILE, "generation_config.json", "chat_template*", "LICENSE*", "NOTICE*")


def load_model(source: str, dtype: torch.dtype | str = "auto") -> tuple[Any, Any | None]:
    """The transformers model, in eval mode on the CPU, and its tokenizer (None where there is none).

    source: checkpoint folder or ``.gguf`` file; dtype: as stored unless given (a GGUF file's is float32).
    Raises UserError in one line, also where weights are missing, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    where, options = place(source)
    with _one_line(f"{source}:"):
        network, loading = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[what]:
            raise UserError(f"{source}: {what.replace('_', ' ')} in the weights: {sorted(loading[what])[0]}")
    return network.eval(), load_tokenizer(source, network.config.vocab_size)


def load_config(source: str) -> Any:
    """The transformers config of a folder or GGUF file; no weight is read. Raises UserError."""
    from transformers import AutoConfig

    where, options = place(source)
    with _one_line(f"{source}:"):
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **options)


def load_tokenizer(source: str | Path, vocab_size: int) -> Any | None:
    """The tokenizer of a folder or GGUF file, None where there is none.

    Raises UserError where it cannot be read or knows tokens the model does not.
    """
    from transformers import AutoTokenizer

    where, options = place(str(source))
    if not _has_tokenizer(where, options):
        return None
    with _one_line(f"{source}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    if len(tokenizer) > vocab_size:
        raise UserError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary {vocab_size}")
    return tokenizer


def _has_tokenizer(where: Path, options: dict[str, str]) -> bool:
    if options:
        from gguf import GGUFReader

        return "tokenizer.ggml.model" in GGUFReader(where / options["gguf_file"]).fields
    return any(fnmatch(path.name, pattern) for path in where.iterdir() for pattern in TOKENIZER_FILES)


def place(source: str) -> tuple[Path, dict[str, str]]:
    """The folder, and how transformers is told of a GGUF file in it. Raises UserError where that cannot be read."""
    path = Path(source)
    if path.suffix != ".gguf":
        return path, {}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the extra gguf ({install_hint('gguf')})") from None
    return path.parent, {"gguf_file": path.name}


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """transformers, tokenizers, safetensors and gguf raise their own kinds, after a report of many lines."""
    from transformers.utils import logging as talk

    level, terminal = talk.get_verbosity(), sys.stderr.isatty()
    talk.set_verbosity(logging.CRITICAL)
    try:
        with nullcontext() if terminal else redirect_stderr(StringIO()):  # progress bars are for a terminal
            yield
    except Exception as error:
        raise UserError(f"{what} cannot be read: {' '.join(str(error).split())[:300]}") from None
    finally:
        talk.set_verbosity(level)


def fetched(source: str) -> str:
    """What is on the disk as it is, a hub id as the folder it was downloaded to."""
    return source if Path(source).exists() else str(_download(source))


def _download(name: str) -> Path:
    """Of a hub's checkpoint what growth needs: safetensors, where there are none the old ``.bin`` files."""
    weights = ("model*.safetensors", "pytorch_model*.bin")
    for pattern in weights:
        folder = _snapshot(name, ["*.json", pattern, *CARRIED_FILES])
        if any(folder.glob(pattern)):
            return folder
    raise UserError(f"model={name}: the hub's repository has no {' and no '.join(weights)}")


def _snapshot(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns="*/*", etag_timeout=3))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model={name}: no such folder, and not to be had from the hub: {reason[:200]}") from None
