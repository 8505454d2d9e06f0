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

from toolkit.errors import UserError, first_line, with_kind
from toolkit.installation import install_hint
from toolkit.stacking.checkpoints.gguf_header import read_gguf_header

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.tiktoken")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")  # most tokenizers have one of them
HISTORY_FILE = "training.json"  # what the network has cost so far (curves.Spent)
REPORT_FILE = "growth.json"  # where its layers came from
CARRIED_FILES = (
    *TOKENIZER_FILES,
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    *("LICENSE*", "license*", "NOTICE*", "USE_POLICY*"),
    HISTORY_FILE,
    REPORT_FILE,
)


def load_model(source: str, dtype: torch.dtype | str = "auto") -> tuple[Any, Any | None]:
    """The network as ``load_network`` gives it and its tokenizer (None where there is none). Raises UserError."""
    return load_network(source, dtype), load_tokenizer(source)


def load_network(source: str, dtype: torch.dtype | str = "auto", offload: str | None = None) -> Any:
    """The transformers model of a checkpoint folder or ``.gguf`` file, in eval mode on the CPU.

    dtype: as stored unless given (a GGUF file's is float32). offload: a folder for what cannot stay where it is; then
    weights are read from the disk each time they are needed, and memory for one layer is enough.

    Raises UserError in one line, also where weights are missing, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    where, options = place(source)
    from_disk: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": offload} if offload else {}
    with one_line(f"{source}:"):
        network, loading = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options, **from_disk
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[what]:
            raise UserError(f"{source}: {what.replace('_', ' ')} in the weights: {sorted(loading[what])[0]}")
    return network.eval()


def load_config(source: str) -> Any:
    """The transformers config of a folder or GGUF file; no weight is read. Raises UserError."""
    from transformers import AutoConfig

    where, options = place(source)
    with one_line(f"{source}:"):
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **options)


def load_tokenizer(source: str | Path) -> Any | None:
    """The tokenizer of a folder or GGUF file, None where there is none. Raises UserError where it cannot be read.

    It may know more tokens than its model: checkpoints are published so.
    """
    from transformers import AutoTokenizer

    where, options = place(str(source))
    if not _has_tokenizer(where, options):
        return None
    try:
        with one_line(f"{source}: its tokenizer"):
            return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except UserError:
        if options or any(any(where.glob(pattern)) for pattern in VOCABULARIES):
            raise
        raise UserError(
            f"{source}: settings of a tokenizer, but no tokenizer ({', '.join(VOCABULARIES)}); copy it there, or move "
            "the settings away"
        ) from None


def num_ids(tokenizer: Any) -> int:
    """One more than a text's largest possible id: the number of its tokens, or more where ids have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def _has_tokenizer(where: Path, options: dict[str, str]) -> bool:
    if options:
        return "tokenizer.ggml.model" in read_gguf_header(where / options["gguf_file"]).fields
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
def one_line(what: str) -> Iterator[None]:
    """transformers, tokenizers, safetensors and gguf raise their own kinds, after a report of many lines."""
    from transformers.utils import logging as talk

    level, terminal = talk.get_verbosity(), sys.stderr.isatty()
    talk.set_verbosity(logging.CRITICAL)
    try:
        with nullcontext() if terminal else redirect_stderr(StringIO()):  # progress bars are for a terminal
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be read: {with_kind(error, 300)}") from None
    finally:
        talk.set_verbosity(level)


def fetched(source: str) -> str:
    """What is on the disk as it is, a hub id (``org/name``, ``org/name@revision``) as the folder it was fetched to."""
    if Path(source).exists():
        return source
    name, _, revision = source.partition("@")
    return str(_download(name, revision or None))


def _download(name: str, revision: str | None) -> Path:
    """Of a hub's checkpoint what growth needs: safetensors, where there are none the old ``.bin`` files."""
    weights = ("model*.safetensors", "pytorch_model*.bin")
    for pattern in weights:
        folder = _snapshot(name, revision, ["*.json", pattern, *CARRIED_FILES])
        if any(folder.glob(pattern)):
            return folder
    raise UserError(f"model={name}: the hub's repository has no {' and no '.join(weights)}")


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        others = ["*/*.json", "*/*.safetensors", "*/*.bin", "*/tokenizer*", "*/vocab*"]  # fnmatch's * crosses slashes
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=others, etag_timeout=3)
        )
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = first_line(error)[:200]
        raise UserError(f"model={name}: no such folder, and not to be had from the hub: {reason}") from None
