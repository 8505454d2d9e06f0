"""JSON of somebody else's is an object, texts are read as their marks say, or one line names the file."""

import pytest

from toolkit import plain_files
from toolkit.data.episodes.layouts.base import files_below
from toolkit.data.episodes.npz import npz_files
from toolkit.errors import UserError
from toolkit.plain_files import check_writable, named_path, read_object, read_text, read_yaml, visible_files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged, or no JSON"),
        (b"{", "damaged, or no JSON"),
        (b"\xff", "damaged, or no JSON"),
        (b"[" * 100_000, "damaged, or no JSON .it is nested too deeply"),
        (b'{"a": ' * 50_000, "damaged, or no JSON .it is nested too deeply"),
        (b'{"steps": ' + b"9" * 9999 + b"}", "damaged, or no JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "damaged, or no JSON .a pointer of Git LFS stands in its"),
        (b'{"a": 1}', "'steps' is missing or not of type int"),
        (b'{"steps": true}', "'steps' is missing or not of type int"),
        (b'{"steps": 1.5}', "'steps' is missing or not of type int"),
        (b'{"steps": 1, "time_s": "1"}', "'time_s' is missing or not of type float"),
    ],
)
def test_what_is_no_object_is_one_line(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {said}") as caught:
        read_object(path, steps=int, time_s=float)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": 1, "time_s": 2}')
    assert read_object(tmp_path / "a.json", time_s=float) == {"a": 1, "time_s": 2}
    monkeypatch.setattr(plain_files, "MOST_BYTES", 9)
    with pytest.raises(UserError, match=r"a\.json: has 21 bytes"):
        read_object(tmp_path / "a.json")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "a.json")


def test_a_key_that_stands_twice_in_yaml_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(ValueError, match="found duplicate key c"):
        read_yaml(tmp_path / "twice.yaml")
    (tmp_path / "merged.yaml").write_text("base: &base {c: 1}\nb: {<<: *base, c: 2}\n")
    assert read_yaml(tmp_path / "merged.yaml", aliases=True)["b"] == {"c": 2}


def test_a_tilde_is_home_or_part_of_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(named_path(one)) for one in ("~/a", "~nobody.here/a", "a~")] == ["/home/me/a", "~nobody.here/a", "a~"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_is_read_as_its_mark_says(tmp_path, codec):
    (tmp_path / "a.txt").write_bytes("Füße\r\n猫\n".encode(codec))
    assert read_text(tmp_path / "a.txt") == "Füße\n猫\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Füße".encode("latin-1"), "cannot be read as UTF-8 text .*; save it as UTF-8"),
        (b"\xff\xfea", "cannot be read as UTF-8 text"),  # half a character of UTF-16
        ("ab".encode("utf-16-le"), "holds NUL characters: no text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_text_is_one_line_that_names_key_and_file(tmp_path, content, said):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts=.*a\.txt: {said}") as caught:
        read_text(path, "prompts")
    assert "\n" not in str(caught.value)


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    (tmp_path / "prompts.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"prompts\.txt: a pointer of Git LFS stands in its place; git lfs pull"):
        read_text(tmp_path / "prompts.txt")


def test_hidden_files_and_what_lies_in_hidden_folders_are_not_listed(tmp_path):
    root = tmp_path / ".cache" / "set"  # above the folder nothing counts
    for name in ("b.npz", "a/c.npz", ".d.npz", "a/._c.npz", ".ipynb_checkpoints/b.npz", "a/.trash/e/f.npz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    assert visible_files(root) == [root / "a/c.npz", root / "b.npz"]
    assert npz_files(root)[0] == files_below(root, "*.npz", hint="") == visible_files(root)


def test_where_a_result_cannot_be_written_is_said_before_the_work(tmp_path):
    check_writable(None, "out")
    check_writable(tmp_path / "new" / "a.json", "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "a.json", tmp_path / "new", tmp_path / ("a" * 300) / "a.json"):
        with pytest.raises(UserError, match=rf"^out={place}: cannot be written \(.*\); name one in a folder of yours"):
            check_writable(place, "out")
