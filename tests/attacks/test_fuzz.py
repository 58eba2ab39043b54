"""Random damage to headers, indexes, configs and packed files gives a ShardproofError or a right reading, never a crash."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardproof.checkpoint import Checkpoint
from shardproof.checkpoint.header import read_header
from shardproof.errors import ShardproofError
from shardproof.formats import read_experts
from tests.attacks.files import entry, raw_file
from tests.checkpoints import make

GOOD = json.dumps(
    {"__metadata__": {"format": "pt"}, "a": entry(0, 64, "I8", [4, 16]), "b": entry(64, 68, "F8_E8M0", [4, 1])}
).encode()
SPLICES = st.lists(
    st.tuples(
        st.integers(0, len(GOOD)),
        st.integers(0, 12),
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from([b"-1", b"1e3", b"99999999999999999999", b"null", b"{}", b"[]", b'"U8"', b"\\ud800", b","]),
        ),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def spliced(text: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in splices:
        text = text[:at] + new + text[at + length :]
    return text


@given(splices=SPLICES, cut=st.integers(0, 68), lie=st.sampled_from([0, 0, 0, 1, -1, 1 << 40]))
def test_headers(folder, splices, cut, lie):
    text = spliced(GOOD, splices)
    path = raw_file(folder / "h.safetensors", text, bytes(cut), length=max(0, len(text) + lie))
    try:
        header = read_header(path)
    except ShardproofError as error:
        str(error).encode()
        assert error.code.startswith("checkpoint.")
        return
    spans = sorted((t.start, t.stop) for t in header.tensors)
    assert [a for a, _ in spans] == [8 + len(header.raw), *(b for _, b in spans)][: len(spans)]
    assert (spans[-1][1] if spans else 8 + len(header.raw)) == path.stat().st_size


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                          lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                              ["dtype", "shape", "data_offsets", "w", "__metadata__"]), inner, max_size=4), max_leaves=9))  # fmt: skip
def test_headers_that_are_any_json(folder, value):
    path = raw_file(folder / "j.safetensors", json.dumps(value).encode().ljust(2))
    try:
        read_header(path)
    except ShardproofError as error:
        str(error).encode()


@pytest.fixture(scope="module")
def made(folder):
    return {kind: make(folder / kind, kind, files=1).folder for kind in ("deepseek", "gpt_oss", "quark")}


KEYS = [
    "model_type", "expert_dtype", "n_routed_experts", "num_experts", "num_local_experts", "swiglu_limit", "text_config",
    "quantization_config", "quant_method", "format", "config_groups", "hidden_size", "moe_intermediate_size",
    "num_experts_per_tok", "swiglu_alpha",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["fp4", "FP8", "mxfp4", "", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss", "quark"])
@given(change=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_configs(made, kind, change):
    path = made[kind] / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **change}))
    try:
        model = read_experts(Checkpoint.open(made[kind]))
        assert model.layers["layers.0"].spec.experts == 4
    except ShardproofError as error:
        str(error).encode()
    finally:
        path.write_text(before)


@pytest.mark.parametrize("kind", ["deepseek", "gpt_oss"])
@given(at=st.integers(8, 4000), new=st.binary(min_size=1, max_size=3))
def test_expert_headers(made, kind, at, new):
    path = next(made[kind].glob("*.safetensors"))
    before = path.read_bytes()
    path.write_bytes(before[:at] + new + before[at + len(new) :])
    try:
        read_experts(Checkpoint.open(made[kind]))
    except ShardproofError as error:
        str(error).encode()
    finally:
        path.write_bytes(before)
