"""Specs of simulated devices: presets, files, and what is refused."""

from pathlib import Path

import msgspec
import pytest

from albireo.sim.spec import SpecError, decode_spec, encode_spec, preset_names, read_spec

H100 = encode_spec(read_spec("h100"))


def test_every_preset_is_a_valid_spec_that_names_its_source() -> None:
    assert preset_names() == ("a100", "b200", "h100", "h200", "l40", "l40s")
    for name in preset_names():
        spec = read_spec(name)
        assert spec.name == name
        assert "NVIDIA" in spec.source
        assert "https://" in spec.source


def test_what_is_written_is_what_is_read_from_either_format(tmp_path: Path) -> None:
    spec = read_spec("h200")
    toml, json = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text(encode_spec(spec))
    json.write_bytes(msgspec.json.encode(spec))
    assert read_spec(str(toml)) == read_spec(str(json)) == spec


def test_a_spec_from_before_the_host_s_efficiency_has_all_of_its_link() -> None:
    old = H100.replace("host = 1.0\n", "")
    assert old != H100
    assert decode_spec(old.encode(), "f.toml", is_json=False) == read_spec("h100")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flops = 0.6", "flops = 1.6", "f.toml: efficiency.flops: expected float <= 1.0"),
        ("link = 0.75", "link = 0", "f.toml: efficiency.link: expected float >= 0.001"),
        ("host = 1.0", "host = 1.5", "f.toml: efficiency.host: expected float <= 1.0"),
        ("kernel_s = 8e-07", "kernel_s = nan", "f.toml: overhead.kernel_s: expected float >= 0.0"),
        ("memory_bandwidth = 3350000000000.0", "memory_bandwidth = inf", "f.toml: memory_bandwidth: expected float <="),
        ("memory_bytes = 85520809984", "memory_bytes = 80", "f.toml: memory_bytes: expected int >= 1048576"),
        ("max = 700.0", "max = 3", "f.toml: power.max (3) is below power.idle (70)"),
        ("latency_s", "latency", "f.toml: link: object contains unknown field latency"),
        ("[link]", "[linc]", "f.toml: object contains unknown field linc"),
        ("idle = 70.0", "", "f.toml: power: object missing required field idle"),
        ('name = "h100"', 'name = ""', "f.toml: name: expected str of length >= 1"),
        ('name = "h100"', "name = 3", "f.toml: name: expected str, got int"),
        ("[link]", "[link", "f.toml is no TOML: "),
        ("[link]", "x = " + "[" * 100_000, "f.toml is no TOML: maximum recursion depth exceeded"),
        ('name = "h100"', r'name = "h100\n"', "f.toml: name: expected str matching regex"),
    ],
)
def test_a_spec_with_a_mistake_is_refused_in_a_line_that_names_field_and_bound(
    old: str, new: str, message: str
) -> None:
    assert old in H100
    with pytest.raises(SpecError) as raised:
        decode_spec(H100.replace(old, new).encode(), "f.toml", is_json=False)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match="no preset 'h101': there are a100, b200, h100, h200, l40, l40s, or name a spec"
    ):
        read_spec("h101")
    with pytest.raises(SpecError, match=r"cannot read the spec .*: No such file or directory"):
        read_spec(str(tmp_path / "gone.toml"))
    with pytest.raises(SpecError, match=r"cannot read the spec .*: Is a directory"):
        read_spec(str(tmp_path))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\0")
    with pytest.raises(SpecError, match=r"binary.toml is no TOML"):
        read_spec(str(binary))
