"""The table of devices, and one of the user's own."""

import pytest

from toolkit.errors import UserError
from toolkit.plan.devices import TABLE, parse, read_table

NEW = "TPUv9: {tflops: {fp32: 50, bf16: 700}, memory_gib: 95, bandwidth_gb_s: 2700, product_efficiency: 0.5}\n"


def test_the_table_has_the_devices_that_are_promised():
    assert {"A100-40", "A100-80", "H100", "H200", "B200", "L40S", "RTX4090"} <= set(read_table(TABLE))


def test_a_number_and_a_device():
    cluster = parse("8xh100")
    assert (cluster.count, cluster.device.name, parse("H200").count) == (8, "H100", 1)
    assert cluster.exchange_gb_s == 450 and parse("16xH100").exchange_gb_s == 50


def test_a_file_adds_devices_and_replaces_known_ones(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(NEW + "H100: {tflops: {fp32: 1}, memory_gib: 1, bandwidth_gb_s: 1}\n")
    assert parse("4xTPUv9", file).device.product_efficiency == 0.5
    assert parse("H100", file).device.tflops == {"fp32": 1, "tf32": 1, "bf16": 1}
    assert parse("A100-40", file).device.memory_gib == 40


def test_this_machine_is_one_device():
    here = parse("here").device
    assert here.name == "here" and here.tflops["fp32"] > 0.01 and here.memory_gib > 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xH10", "8xH10: did you mean 'H100'"),
        ("0xH100", "write a number and a device"),
        ("00xH100", "write a number and a device"),
        ("", "write a number and a device"),
    ],
)
def test_an_unknown_device_is_refused_in_one_line(text, said):
    with pytest.raises(UserError, match=said) as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n", "must map names"),
        ("X: {tflops: {fp32: 1}, memory_gib: 1}\n", "X.bandwidth_gb_s: must be given"),
        ("X: {tflops: {fp32: 1}, memory_gib: 1, bandwidth_gb_s: 0}\n", "X.bandwidth_gb_s=0: must be"),
        ("X: {tflops: {fp64: 1}, memory_gib: 1, bandwidth_gb_s: 1}\n", "X.tflops: must map"),
        ("X: {tflops: {fp32: 1}, memory: 1}\n", "X.memory: did you mean 'memory_gib'"),
        ("X: {tflops: [\n", "cannot be read as YAML"),
        ("a: &a {}\nX: {tflops: *a}\n", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_key(content, said, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        parse("X", file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
