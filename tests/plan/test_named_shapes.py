"""The models that people shard, planned without a byte. Numbers are worked out by hand from the models' configs."""

from __future__ import annotations

import numpy as np
import pytest

from shardproof.errors import PartitionError
from shardproof.plan import make_plan
from tests.models import AITER, RAW, model_of, recipe, spec_of

V4_PRO = spec_of(384, 7168, 3072)
V4_FLASH = spec_of(256, 4096, 2048)
GPT_OSS = spec_of(128, 2880, 2880, bias=True)
V41_FLASH = spec_of(384, 5120, 2304)
QWEN3_235B = spec_of(128, 4096, 1536)
LING = spec_of(512, 2560, 768)
KIMI_K3 = spec_of(896, 3584, 3072)


def valid(spec, tp, **options):
    plan = make_plan(model_of(spec), RAW, tp=tp, **options)
    return [plan.shape("layers.0").valid(r) for r in plan.ranks]


@pytest.mark.parametrize(
    ("spec", "tp", "expected"),
    [
        (V4_PRO, 8, [384] * 8), (V4_PRO, 16, [192] * 16), (V4_PRO, 32, [96] * 32), (V4_PRO, 12, [256] * 12),
        (V4_FLASH, 8, [256] * 8), (V4_FLASH, 32, [64] * 32),
        (V4_FLASH, 3, [704, 672, 672]), (V4_FLASH, 5, [416] * 4 + [384]), (V4_FLASH, 6, [352] * 4 + [320] * 2),
        (V4_FLASH, 7, [320] + [288] * 6),
        (GPT_OSS, 2, [1440] * 2), (GPT_OSS, 3, [960] * 3), (GPT_OSS, 4, [736, 736, 704, 704]),
        (GPT_OSS, 8, [384] * 2 + [352] * 6), (GPT_OSS, 16, [192] * 10 + [160] * 6),
        (V41_FLASH, 8, [288] * 8), (V41_FLASH, 16, [160] * 8 + [128] * 8),
        (QWEN3_235B, 32, [64] * 16 + [32] * 16), (LING, 16, [64] * 8 + [32] * 8), (KIMI_K3, 8, [384] * 8),
        (spec_of(8, 2048, 1408), 8, [192] * 4 + [160] * 4), (spec_of(8, 2048, 640), 8, [96] * 4 + [64] * 4),
        (spec_of(8, 576, 192), 4, [64, 64, 32, 32]),
    ],
    ids=lambda v: f"I{v.intermediate}" if hasattr(v, "intermediate") else None,
)  # fmt: skip
def test_valid_lengths(spec, tp, expected):
    assert valid(spec, tp) == expected
    assert sum(expected) == spec.intermediate


def test_the_ceil_policy_is_what_vllms_gpt_oss_loader_does():
    assert valid(GPT_OSS, 8, policy="ceil") == [384] * 7 + [192]
    assert valid(GPT_OSS, 4, policy="ceil") == [736] * 3 + [672]
    assert valid(GPT_OSS, 16, policy="ceil", allow_empty=True) == [192] * 15 + [0]
    with pytest.raises(PartitionError, match="1 of 16"):
        valid(GPT_OSS, 16, policy="ceil")


def test_the_demo_model_leaves_two_of_eight_ranks_empty():
    demo = spec_of(8, 576, 192)
    assert valid(demo, 8, allow_empty=True) == [32] * 6 + [0] * 2
    with pytest.raises(PartitionError, match="2 of 8"):
        valid(demo, 8)


def test_v4_pro_at_tp_8_wastes_what_one_engine_measured():
    """Rounding 384 up to 512 and holding 61 layers: 30 GiB a GPU and more."""
    plan = make_plan(model_of(*[V4_PRO] * 61), recipe(256, 256), tp=8)
    rank = plan.ranks[7]
    assert plan.shape("layers.0").intermediate == 512
    assert plan.kernel_padding("layers.0", rank) == {"hidden_pad": 0, "intermediate_pad": 128}
    waste = 61 * 384 * (3 * 7168 * 128 // 2 + 3 * 7168 * 128 // 32)
    assert plan.waste_bytes(rank) == waste
    assert round(waste / 2**30, 1) == 31.9


def test_aiter_on_v4_pro():
    plan = make_plan(model_of(V4_PRO), AITER, tp=8)
    shape = plan.shape("layers.0")
    assert (shape.hidden, shape.intermediate, plan.waste_bytes(plan.ranks[0])) == (7168, 384, 384 * 7168 * 4)
    # the kernel's own scale tile: 12 blocks of w2 are padded to 16, for each of 384 * 7168 rows


def test_gpt_oss_padding_is_inside_each_half():
    plan = make_plan(model_of(GPT_OSS), recipe(256, 128), tp=8)
    shape = plan.shape("layers.0")
    assert (shape.hidden, shape.intermediate) == (3072, 384)
    for rank, pad in zip(plan.ranks, [0, 0] + [32] * 6, strict=True):
        assert plan.kernel_padding("layers.0", rank) == {"hidden_pad": 192, "intermediate_pad": pad}
        w1, w3 = plan.cuts("layers.0", rank, "w13", "weight")
        assert (w1.at_row, w3.at_row) == (0, 384)


def test_kimi_k3_is_planned_whole():
    """896 experts in 92 layers: 494,592 tensors, 1.3 TiB of expert bytes; integers only."""
    plan = make_plan(model_of(*[KIMI_K3] * 92), RAW, tp=4, ep=16)
    assert len(plan.ranks) == 64
    assert {len(plan.experts("layers.5", r)) for r in plan.ranks} == {56}
    total = sum(plan.read_bytes(r) for r in plan.ranks)
    assert total == 92 * 896 * KIMI_K3.expert_bytes
    assert len(plan.shapes) == 1


@pytest.mark.parametrize("tp", range(1, 17))
@pytest.mark.parametrize("spec", [V4_PRO, V4_FLASH, GPT_OSS, V41_FLASH], ids=lambda s: f"I{s.intermediate}")
def test_every_tp_up_to_16_proves_its_cover(spec, tp):
    plan = make_plan(model_of(spec), RAW, tp=tp)
    assert f"exactly one of {tp} tensor-parallel ranks" in plan.prove()[0]
    lengths = np.array(valid(spec, tp))
    assert lengths.max() - lengths.min() in (0, 32)
