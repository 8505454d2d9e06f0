"""Text corpora: which documents come out of which files, and what is refused."""

import gzip
import json
import os
import struct
import zlib

import pytest

from toolkit import data
from toolkit.data.config import Data, TextData
from toolkit.data.downloads import DOWNLOADS
from toolkit.data.sources import SourceFailed
from toolkit.data.text import corpora
from toolkit.data.text import packages as text_packages
from toolkit.errors import UserError


def documents(folder, **keys):
    return list(data.load_text(TextData(name="text_folder", path=str(folder), **keys)).documents())


def refused(message, **keys):
    with pytest.raises(UserError, match=message):
        list(data.load_text(TextData(**keys)).documents())


def test_a_folder_in_the_order_of_its_names(tmp_path):
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "  "}\n{"text": "fourth"}\n')
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fifth"}\n'))
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert documents(tmp_path) == ["first", "second\n", "third", "fourth", "fifth"]
    assert documents(tmp_path / "c.jsonl") == ["third", "fourth"]


def test_parquet_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "other": [1, 2]}), tmp_path / "a.parquet")
    assert documents(tmp_path) == ["one", "two"]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet"):
        documents(tmp_path)


def test_a_folder_that_holds_splits_is_not_trained_on_whole(tmp_path):
    for part in ("Train", "validation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.txt").write_text(part)
    message = r"holds splits \(Train, validation\), which would be mixed; give data.path=.*Train"
    refused(message, name="text_folder", path=str(tmp_path))
    assert documents(tmp_path / "Train") == ["Train"]


def test_another_key_and_less_of_it(tmp_path):
    lines = [json.dumps({"content": "x" * 600}) for _ in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert len(documents(tmp_path, text_key="content")) == 10
    assert len(documents(tmp_path, text_key="content", max_mb=0.002)) == 4


def test_the_fingerprint_follows_the_text(tmp_path):
    def fingerprint(**keys):
        return data.load_text(TextData(name="text_folder", path=str(tmp_path), **keys)).fingerprint

    (tmp_path / "a.txt").write_text("one")
    first = fingerprint()
    assert fingerprint() == first and fingerprint(max_mb=1) != first
    (tmp_path / "a.txt").write_text("other")
    assert fingerprint() != first


def test_slimpajama_without_its_github_part(tmp_path):
    records = [
        {"text": "prose", "meta": {"redpajama_set_name": "RedPajamaC4"}},
        {"text": "int main() {}", "meta": {"redpajama_set_name": "RedPajamaGithub"}},
        {"text": "no meta"},
    ]
    (tmp_path / "chunk.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = data.load_text(TextData(name="text_slimpajama", path=str(tmp_path)))
    assert list(corpus.documents()) == ["prose", "no meta"]


def test_pythons_own_documentation():
    corpus = data.load_text(TextData(name="text_python", max_mb=0.05))
    texts = list(corpus.documents())
    assert 50_000 <= sum(len(text.encode()) for text in texts) < 200_000
    assert any("assignment" in text for text in texts) and texts == list(corpus.documents())


def test_bad_input_is_one_line(tmp_path):
    refused("data.name=text_brwn: did you mean 'text_brown'", name="text_brwn")
    refused("data.path: data.name=text_folder needs the folder", name="text_folder")
    refused("no such folder or file", name="text_folder", path=str(tmp_path / "nowhere"))
    refused("no text there", name="text_folder", path=str(tmp_path))
    (tmp_path / "a.csv").write_text("text\nx\n")
    refused("no text there, but a.csv .*txt", name="text_folder", path=str(tmp_path))
    (tmp_path / "a.csv").unlink()
    refused("reads no files", name="text_python", path=str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nnot json\n')
    refused(r"a\.jsonl: line 2 is not a JSON object", name="text_folder", path=str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    refused("record 1 has no text in 'text' .it has body.; set data.text_key", name="text_folder", path=str(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    refused("b.txt: cannot be read as UTF-16-LE text", name="text_folder", path=str(tmp_path))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    refused("b.txt: cannot be read as UTF-8 text", name="text_folder", path=str(tmp_path))
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"long enough " * 100)[:40])
    refused("c.txt.gz: cannot be read", name="text_folder", path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "Hello".encode("utf-16-le"), "holds NUL characters, so it is no text in UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "a \\ud800 b"}\n', "record 2 has half a character"),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS stands in its place",
        ),
        ("a.jsonl", b'{"text": null}\n', "record 1 has null in 'text', not text; take it out"),
    ],
)
def test_what_decodes_and_is_no_text_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    refused(f"{name}: {said}", name="text_folder", path=str(tmp_path))


def test_files_of_other_editors_and_other_systems(tmp_path, caplog):
    """A mark before UTF-8, suffixes in capitals, hidden files, names that are no UTF-8; the others are told."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    (tmp_path / "B.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "second"}')
    (tmp_path / "C.TXT.GZ").write_bytes(gzip.compress(b"third"))
    (tmp_path / "._a.txt").write_bytes(b"\xff\0")
    (tmp_path / "notes.csv").write_text("no text")
    (tmp_path / os.fsdecode(b"d\xff.txt")).write_text("fourth")
    assert documents(tmp_path) == ["second", "third", "first", "fourth"]
    assert "passed over, no text by their suffix: notes.csv" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_a_mark_says_how_a_text_is_encoded(tmp_path, encoding, suffix, pack):
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("ein Café\n".encode(encoding)))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack('{"text": "zwei"}\n{"text": "drei"}\n'.encode(encoding)))
    assert documents(tmp_path) == ["ein Café\n", "zwei", "drei"]


def test_what_breaks_a_decoder_is_one_line(tmp_path):
    """Deep nesting, damage inside a compressed stream, metadata of another type."""
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    refused(r"deep\.jsonl: line 1 is not a JSON object", name="text_folder", path=str(path))
    path = tmp_path / "a.txt.gz"
    content = bytearray(gzip.compress(" ".join(map(str, range(999))).encode()))
    content[30] ^= 255
    path.write_bytes(content)
    refused(r"a\.txt\.gz: cannot be read .*Error -3", name="text_folder", path=str(path))
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "meta": 3}\n')
    assert list(data.load_text(TextData(name="text_slimpajama", path=str(path))).documents()) == ["one"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt"])
def test_a_document_beyond_memory_is_refused_before_it_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(corpora, "MOST_CHARACTERS", 99)
    content = (b'{"text": "%s"}' if "json" in name else b"%s") % (b"a" * 200)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    refused(f"{name}: holds a document of more than 99 characters; cut it", name="text_folder", path=str(tmp_path))


def test_images_and_text_do_not_mix():
    refused("data.name=digits", name="digits")
    with pytest.raises(UserError, match="is text"):
        data.load(Data(name="text_brown"))


# -- packages ----------------------------------------------------------------------------------------------------------


def test_browns_tags_are_taken_off(tmp_path):
    line = "The/at jury/nn ``/`` praised/vbd ''/'' ,/, (/( A/at ./. )/) 1//cd 2/cd ;/. ;/."
    (tmp_path / "ca01").write_text(f"\n\n\t{line}\n\n")
    (tmp_path / "cats.txt").write_text("ca01 news")
    assert list(text_packages.brown(tmp_path)) == ['The jury "praised", (A.) 1/ 2;']


def test_dictionary_entries(tmp_path):
    long = 'Abuse \\A*buse"\\, n.\n   1. Improper treatment or use; application to a wrong or bad purpose.'
    long += "\n      [1913 Webster]"
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(f"short one\n\n{long}\n\n{long}\n".encode()))
    (document,) = text_packages.gcide(tmp_path)
    assert document.count("Improper treatment") == 2 and "Webster" not in document and "short" not in document


def serialised(strings):
    """An R character vector in XDR, as a lazy-load data base has it."""
    body = b"".join(struct.pack(">Ii", 0x00040009, len(one)) + one for one in strings)
    content = b"X\n" + struct.pack(">III", 3, 0x40000, 0x30500) + struct.pack(">II", 16, len(strings)) + body
    return struct.pack(">I", len(content)) + zlib.compress(content)


def test_rs_lazy_load_data_base(tmp_path):
    lines = [f"line {i}".encode() for i in range(900)]
    (tmp_path / "Rdata.rdb").write_bytes(serialised([b"too", b"short"]) + serialised(lines))
    pieces = list(text_packages.austen(tmp_path))
    assert len(pieces) == 3 and pieces[0].startswith("line 0\nline 1\n") and pieces[-1].endswith("line 899")
    (tmp_path / "Rdata.rdb").write_bytes(b"\0\0\0\1not zlib")
    with pytest.raises(SourceFailed, match="compressed in an unknown way"):
        list(text_packages.austen(tmp_path))


def test_packages_become_jsonl_files(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "x.pod").write_text("=head1 ÄÖ\n\ntext")
    (folder / "perltoc.pod").write_text("an index")
    unpack = text_packages.as_jsonl(lambda _: folder, perl=text_packages.perl_pods)
    found = unpack(tmp_path) / "perl.jsonl"
    assert [json.loads(line) for line in found.read_text().splitlines()] == [{"text": "=head1 ÄÖ\n\ntext"}]
    empty = text_packages.as_jsonl(lambda _: folder, brown=text_packages.brown)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SourceFailed, match="no text for brown"):
        empty(other)


def test_every_packaged_text_is_pinned():
    for name in ("brown", "english", "austen", "gcide", "perl"):
        assert all(file.endswith(".jsonl") and len(pin) == 64 for file, pin in DOWNLOADS[name].files.items())


def test_names_that_tell_more_than_one_text(tmp_path, caplog):
    """A packed copy beside its text would be read twice; files named after splits are mixed, which is said."""
    (tmp_path / "wiki.valid.txt").write_text("held out")
    (tmp_path / "wiki.train.txt").write_text("train")
    assert documents(tmp_path) == ["train", "held out"]
    assert "named after splits (wiki.train.txt, wiki.valid.txt) are read as one corpus" in caplog.text
    caplog.clear()
    assert documents(tmp_path / "wiki.train.txt") == ["train"] and not caplog.text
    (tmp_path / "wiki.train.txt.gz").write_bytes(gzip.compress(b"train"))
    twice = r"wiki\.train\.txt\.gz and wiki\.train\.txt are one text twice; keep one"
    refused(twice, name="text_folder", path=str(tmp_path))
