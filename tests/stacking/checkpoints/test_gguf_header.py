"""The header of a GGUF file is read within its bounds; what the gguf library writes is read as it reads it."""

import struct

import gguf
import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.stacking.checkpoints.gguf_header import read_gguf_header


def text(value):
    return struct.pack("<Q", len(value)) + value


def number(name, value, kind=4, form="I"):
    return text(name) + struct.pack(f"<I{form}", kind, value)


def tensor(name=b"a", shape=(4,), kind=0, offset=0, dimensions=None):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape) if dimensions is None else dimensions, *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def file(*fields, tensors=(), data=bytes(64), counts=None, version=3):
    num_tensors, num_fields = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def array(kind, length, content=b""):
    return text(b"list") + struct.pack("<IIQ", 9, kind, length) + content


HOSTILE = {
    "does not begin with GGUF": b"GGML" + bytes(99),
    "version 1": file(version=1),
    "version 50331648": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),  # big-endian
    r"counts 1152921504606846976": file(counts=(2**60, 0)),
    r"counts 1000000": file(counts=(0, 10**6)),
    r"counts 9223372036854775808": file(text(b"a")[:0] + struct.pack("<Q", 2**63)),
    r"counts 1073741824": file(array(4, 2**30)),
    r"counts 16777216": file(array(8, 2**24)),
    "counts 99": file(array(8, 1, struct.pack("<Q", 99) + b"a"), data=b""),
    "an array of type 9": file(array(9, 1, struct.pack("<IQ", 9, 1))),
    "a value of type 77": file(text(b"a") + struct.pack("<I", 77)),
    "a is there twice": file(number(b"a", 1), number(b"a", 1)),
    "b is there twice": file(tensors=[tensor(b"b"), tensor(b"b", offset=32)]),
    "general.alignment is 0": file(number(b"general.alignment", 0)),
    "general.alignment is 3": file(number(b"general.alignment", 3)),
    "general.alignment is x": file(text(b"general.alignment") + struct.pack("<I", 8) + text(b"x")),
    "a has 0 dimensions": file(tensors=[tensor(shape=())]),
    "a has 4000000000 dimensions": file(tensors=[tensor(dimensions=4_000_000_000)]),
    "a ends at byte 400000000064, the file": file(tensors=[tensor(shape=(10**11,))]),
    "b begins within another tensor": file(tensors=[tensor(), tensor(b"b", offset=8)]),
    "a ends at byte 1152921504606847056, the file": file(tensors=[tensor(offset=2**60)]),
    "1234 is not a valid GGMLQuantizationType": file(tensors=[tensor(kind=1234)]),
    "a has rows of 4 values, its type has blocks of 32": file(tensors=[tensor(kind=2)]),
    "codec can't decode": file(number(b"\xff", 1)),
    "unpack_from requires": file(data=b"")[:10],
    "cannot mmap an empty file": b"",
}


@pytest.mark.parametrize("said", HOSTILE)
def test_a_header_that_lies_is_one_line(tmp_path, said):
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[said])
    with pytest.raises(UserError, match=rf"a\.gguf: not a GGUF file, or not a whole one \(.*{said}"):
        read_gguf_header(path)


def test_every_cut_of_a_good_file_is_one_line(tmp_path):
    path, cut = tmp_path / "a.gguf", tmp_path / "cut.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "bc", "é"])
    writer.add_tensor("one", np.ones((2, 3), np.float32))
    writer.add_tensor("two", np.ones((5,), np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = read_gguf_header(path)
    assert (
        header.shapes
        == {"one": (3, 2), "two": (5,)}
        == {one.name: tuple(one.shape.tolist()) for one in gguf.GGUFReader(path).tensors}
    )
    assert header.fields == {"general.architecture": "llama", "llama.block_count": 3, "tokenizer.ggml.tokens": 3}
    whole = path.read_bytes()
    data_bytes = 32 + 10  # the last tensor is padded
    for length in range(0, len(whole) - data_bytes, 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a GGUF file, or not a whole one"):
            read_gguf_header(cut)
