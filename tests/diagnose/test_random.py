"""Random correct cases raise no alarm.

SHARDPROOF_DIAGNOSE_CASES sets how many (10,000 in nightly runs) and SHARDPROOF_DIAGNOSE_SEED the first checkpoint's
number: another number gives other cases. Each checkpoint gives a hundred cases, or a tenth of them where that is less.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardproof.diagnose import diagnose, put_back
from shardproof.errors import LayoutError, PartitionError
from shardproof.layouts import catalogue
from shardproof.plan import make_plan
from tests.diagnose.cases import Shape, model_of
from tests.models import RAW

CASES = int(os.environ.get("SHARDPROOF_DIAGNOSE_CASES", "200"))
FIRST = int(os.environ.get("SHARDPROOF_DIAGNOSE_SEED", "0"))
CHECKPOINTS = max(10, CASES // 100)


@pytest.mark.timeout(36000)
@pytest.mark.parametrize("number", range(FIRST, FIRST + CHECKPOINTS))
def test_random_correct_cases(tmp_path: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    kind = ("deepseek", "gpt_oss", "quark", "compressed_tensors")[number % 4]
    shape = Shape(
        "random", kind, int(rng.integers(3, 9)), int(rng.integers(2, 12)) * 32, int(rng.integers(2, 24)) * 32, 1, RAW
    )
    model = model_of(tmp_path, shape, layers=1, seed=number)
    weights = [x for x in catalogue() if x.field == "weight" and not x.name.startswith("gguf")]
    scales = [x for x in catalogue() if x.field == "scale" and not x.name.startswith("gguf")]
    done = 0
    alarms: list[str] = []
    while done < CASES // CHECKPOINTS:
        layouts = dict(RAW.layouts)
        for layout in (rng.choice(weights), rng.choice(scales)):  # type: ignore[arg-type]
            layouts |= {(stack, layout.field): layout.identity() for stack in layout.stacks}
        recipe = replace(
            RAW, layouts=layouts, align_intermediate=int(rng.choice([32, 64, 128, 256])),
            align_hidden=int(rng.choice([32, 64, 128, 256])),
        )  # fmt: skip
        tp, ep = int(rng.integers(1, min(9, shape.intermediate // 32 + 1))), int(rng.integers(1, 4))
        try:
            plan = make_plan(model, recipe, tp=tp, ep=min(ep, shape.experts))
        except (LayoutError, PartitionError):
            continue
        rank = plan.ranks[int(rng.integers(len(plan.ranks)))]
        dump = put_back(model, plan, "layers.0", rank)
        told = rng.random() < 0.5
        hints = {"rank": rank.index, "tp": plan.tp, "ep": plan.ep, "recipe": recipe} if told else {}
        found = diagnose(dump, model, **hints)
        if found.findings:
            alarms.append(f"{shape}, seed {number}, {layouts}, {recipe}, rank {rank}, {bool(hints)}\n{found}")
        done += 1
    assert not alarms, f"{len(alarms)} of {done}\n" + "\n".join(alarms)
