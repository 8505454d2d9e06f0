"""Text corpora: what comes with Python, what packages ship, and anybody's folder of text, jsonl or parquet files.

A corpus is a stream of documents in a fixed order, so that one larger than memory is read like a small one. torch is
not imported here.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib
import io
import json
import logging
import re
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from toolkit.data import catalogue, fetching
from toolkit.data.config import TextData
from toolkit.data.hub import given_path, path_here
from toolkit.data.splits import split_folders, splits_in
from toolkit.errors import UserError, brief, did_you_mean, few
from toolkit.plain_files import MARKS, is_pointer, visible_files, why

PLAIN = (".txt", ".md", ".text")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst")
SLIMPAJAMA = "cerebras/SlimPajama-627B"
LEAST_DOCSTRING = 200  # characters
MOST_CHARACTERS = 2**27  # of one document: it is held whole, several times over where it is tokenised
_STAMP_BYTES = 2**20

Record = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Documents (non-empty strings) in a fixed order; ``documents()`` starts again from the first.

    fingerprint: 16 hex digits that change when the text does. former: those that version 0.1 gave files of the user's
    own, which changed when a file was copied.
    """

    name: str
    licence: str
    origin: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]
    former: str = ""


def load_text(config: TextData) -> Corpus:
    """The corpus that ``config`` names, fetched first where it must be; no document is read yet.

    Raises UserError naming the key or the file.
    """
    entry = check_text(config)
    module, function = entry.loader.split(":")
    corpus: Corpus = getattr(importlib.import_module(module), function)(config)
    return corpus if config.max_mb is None else _limited(corpus, int(config.max_mb * 1e6))


def check_text(config: TextData) -> catalogue.Entry:
    """Hold ``config`` against the table without reading anything. Raises UserError."""
    known = {name: entry for name, entry in catalogue.CATALOGUE.items() if entry.kind == "text"}
    if config.name not in known:
        raise UserError(f"data.name={config.name}: {did_you_mean(config.name, known)}choose one of {', '.join(known)}")
    entry = known[config.name]
    takes_path = entry.needs_path or entry.download or entry.on_hub
    if config.path is None and entry.needs_path:
        raise UserError(f"data.path: data.name={config.name} needs the folder of files, data.path=FOLDER")
    if config.path is not None and not takes_path:
        raise UserError(f"data.path={config.path}: data.name={config.name} reads no files; use data=text_folder")
    path = path_here(config.path) if config.path is not None else None
    if path is not None and not path.exists():
        raise UserError(f"data.path={config.path}: no such folder or file")
    return entry


def _limited(corpus: Corpus, num_bytes: int) -> Corpus:
    """The first documents, as many as fit (one at least)."""

    def documents() -> Iterator[str]:
        left = num_bytes
        for text in corpus.documents():
            yield text
            left -= len(text.encode())
            if left <= 0:
                return

    former = _digest(corpus.former, str(num_bytes)) if corpus.former else ""
    return replace(corpus, fingerprint=_digest(corpus.fingerprint, str(num_bytes)), documents=documents, former=former)


# -- what comes with the toolkit or a package ------------------------------------------------------------------------


def load_python(config: TextData) -> Corpus:
    """The documentation inside Python's standard library: its help topics, then its long docstrings."""
    import platform

    name = f"Python {platform.python_version()}"
    return Corpus(config.name, "PSF-2.0", f"documentation in {name}", _digest(name), _python_documents)


def _python_documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from topics.values()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= LEAST_DOCSTRING:
                    yield text


def load_package(config: TextData) -> Corpus:
    """The jsonl files of a download of the catalogue, fetched into the cache."""
    entry = catalogue.lookup(config.name)
    assert entry.download is not None
    fetched = fetching.fetch(entry.download, config.path)
    paths = sorted(fetched.path.glob("*.jsonl"))

    def documents() -> Iterator[str]:
        """All of them shuffled, so that the first megabytes of a mixture are a mixture."""
        found = [text for path in paths for text in _read_file(path, "text")]
        yield from sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())

    pins = fetching.pins(entry.download).values()
    return Corpus(config.name, fetched.licence, fetched.origin, _digest(*pins), documents)


# -- users' files ----------------------------------------------------------------------------------------------------


def load_folder(config: TextData) -> Corpus:
    """Every text, jsonl and parquet file under ``data.path`` (or that one file), in the order of their names."""
    assert config.path is not None
    return _files_corpus(config, given_path(config.path), lambda _: True)


def load_slimpajama(config: TextData) -> Corpus:
    """SlimPajama-627B without its GitHub part, as the paper: from ``data.path``, or streamed from the hub."""
    if config.path is not None:
        return _files_corpus(config, given_path(config.path), _not_github)
    origin = f"{SLIMPAJAMA} on the hub"
    return Corpus(
        config.name, catalogue.lookup(config.name).licence, origin, _digest(origin), lambda: _hub_documents(SLIMPAJAMA)
    )


def _not_github(record: Record) -> bool:
    meta = record.get("meta")
    return not isinstance(meta, dict) or meta.get("redpajama_set_name") != "RedPajamaGithub"


def _hub_documents(name: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"data: {name} is streamed by the datasets package (pip install datasets)") from None
    try:
        for record in datasets.load_dataset(name, split="train", streaming=True):
            if _not_github(record) and record["text"].strip():
                yield record["text"]
    except Exception as error:  # the client's network errors share no base class
        reason = brief(error)
        raise UserError(f"data: {name} cannot be read from the hub ({reason}); give data.path=FOLDER") from error


def _files_corpus(config: TextData, root: Path, keep: Callable[[Record], bool]) -> Corpus:
    files, others = ([root], []) if root.is_file() else _files_below(root)
    if not files or not _kind(files[0]):
        kinds = ", ".join(SUFFIXES)
        seen = f", but {few(others, 3)}" if others else ""
        raise UserError(f"data.path={config.path}: no text there{seen} ({kinds}; all but parquet also as .gz or .zst)")
    splits = split_folders(sorted(place for place in root.glob("*") if place.is_dir()))
    if len(splits) > 1:
        names, example = ", ".join(place.name for place in splits.values()), next(iter(splits.values()))
        raise UserError(
            f"data.path={config.path}: holds splits ({names}), which would be mixed; give data.path={example}"
        )
    if others:
        _log.warning("data.path=%s: passed over, no text by their suffix: %s", config.path, few(others, 5))
    _check_names(config, files)
    stamps = [_stamp(path, root) for path in files]
    times = [f"{path.relative_to(root.parent)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]

    def documents() -> Iterator[str]:
        for path in files:
            yield from _read_file(path, config.text_key, keep)

    licence = catalogue.lookup(config.name).licence
    fingerprint, former = _digest(config.text_key, *stamps), _digest(config.text_key, *times)
    return Corpus(config.name, licence, str(root), fingerprint, documents, former)


def _check_names(config: TextData, files: list[Path]) -> None:
    """Refuse a text beside its compressed copy; say that files named after splits are read as one corpus."""
    plain = {path.with_suffix("") if path.suffix.lower() in COMPRESSED else path: path for path in reversed(files)}
    for path in files:
        other = plain[path.with_suffix("") if path.suffix.lower() in COMPRESSED else path]
        if other != path:
            raise UserError(f"data.path={config.path}: {path.name} and {other.name} are one text twice; keep one")
    named = {split: path.name for path in files for split in splits_in(path.name)}
    if len(named) > 1:
        _log.warning(
            "data.path=%s: files named after splits (%s) are read as one corpus, of which data.valid_fraction is held "
            "out; to train on one of them alone, give its path",
            config.path,
            ", ".join(named.values()),
        )


def _files_below(root: Path) -> tuple[list[Path], list[str]]:
    """(text files, names of the other files) of any depth, sorted; what is hidden is neither."""
    found = visible_files(root)
    return [path for path in found if _kind(path)], [str(path.relative_to(root)) for path in found if not _kind(path)]


def _stamp(path: Path, root: Path) -> str:
    """Tells whether a file is what it was, wherever its folder lies now: name, size, and both ends of its content."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_STAMP_BYTES))
        file.seek(max(0, size - _STAMP_BYTES))
        digest.update(file.read(_STAMP_BYTES))
    return f"{path.relative_to(root) if path != root else path.name} {size} {digest.hexdigest()}"


def _kind(path: Path) -> str | None:
    """The suffix that says how to read the file, None for one that is no text."""
    suffixes = [suffix for suffix in map(str.lower, path.suffixes[-2:]) if suffix not in COMPRESSED]
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def _read_file(path: Path, text_key: str, keep: Callable[[Record], bool] = lambda _: True) -> Iterator[str]:
    kind = _kind(path)
    if is_pointer(path):  # which would pass for text
        raise UserError(f"{path}: {why(path, '')}")
    try:
        if kind == ".parquet":
            records = _parquet_records(path, text_key)
        elif kind == ".jsonl":
            records = _jsonl_records(path)
        else:
            with _open(path) as file:
                records = iter([{text_key: _checked_length(path, file.read(MOST_CHARACTERS + 1))}])
        for number, record in enumerate(records):
            text = record.get(text_key)
            if not isinstance(text, str):
                raise UserError(f"{path}: record {number + 1} has {_instead_of_text(record, text_key)}")
            _check_characters(path, number, text, kind)
            if text.strip() and keep(record):
                yield text
    except _damages() as error:
        encoding = getattr(error, "encoding", "utf-8").upper()
        raise UserError(f"{path}: cannot be read as {encoding} text: {brief(error)}") from None


def _instead_of_text(record: Record, text_key: str) -> str:
    if text_key in record:
        kind = "null" if record[text_key] is None else type(record[text_key]).__name__
        return f"{kind} in '{text_key}', not text; take it out, or set data.text_key=KEY"
    return f"no text in '{text_key}' (it has {few([*record], 8) or 'nothing'}); set data.text_key=KEY"


def _check_characters(path: Path, number: int, text: str, kind: str | None) -> None:
    """Raises UserError for what decodes and is no text: UTF-16 without its mark, and halves of characters in JSON."""
    if kind in PLAIN and "\0" in text:
        raise UserError(f"{path}: holds NUL characters, so it is no text in UTF-8 (but UTF-16, or binary); convert it")
    if kind == ".jsonl" and (half := re.search("[\ud800-\udfff]", text)):
        raise UserError(f"{path}: record {number + 1} has half a character ({half[0]!r}); mend it, or take it out")


def _damages() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    zstandard = sys.modules.get("zstandard")
    more = () if zstandard is None else (zstandard.ZstdError,)
    return (OSError, EOFError, UnicodeDecodeError, zlib.error, *more)


def _checked_length(path: Path, text: str) -> str:
    """``text``, of which at most one character more than allowed was read. Raises UserError."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{path}: holds a document of more than {MOST_CHARACTERS} characters; cut it into several files, or into "
            "JSON lines of one document each"
        )
    return text


def _jsonl_records(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_CHARACTERS + 1), "")):
            if _checked_length(path, line).strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if not isinstance(record, dict):
                    raise UserError(f"{path}: line {number + 1} is not a JSON object; expected one on each line")
                yield record


def _parquet_records(path: Path, text_key: str) -> Iterator[Record]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet files are read by pyarrow (pip install pyarrow)") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if text_key not in names:
            raise UserError(f"{path}: has no column '{text_key}' (it has {few(names, 8)}); set data.text_key=KEY")
        wanted = [name for name in (text_key, "meta") if name in names]
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as parquet: {why(path, error)}") from None


def _open(path: Path) -> IO[str]:
    """As the mark at its beginning says, which is left out, or as UTF-8."""
    file = io.BufferedReader(_unpacked(path))
    try:
        start = file.peek(4)
    except BaseException:
        file.close()
        raise
    mark = next((mark for mark in MARKS if start.startswith(mark)), b"")
    file.read(len(mark))
    return io.TextIOWrapper(file, encoding=MARKS.get(mark, "utf-8"))


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: .zst files are read by zstandard (pip install zstandard)") from None
        return zstandard.ZstdDecompressor().stream_reader(open(path, "rb"))
    return open(path, "rb", buffering=0)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
