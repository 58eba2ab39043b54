"""The vendors' byte vectors in tests/golden: which layout, shape and parameters each one holds.

An entry is read from the file itself where the file says enough; what it does not say stands in the tables below.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardproof.layouts import Layout

GOLDEN = Path(__file__).parent.parent / "golden"

# Two-dimensional AITER scales do not say how many experts they stack.
EXPERTS = {
    "aiter_e8_i48": 2,
    "aiter_e8_rows192": 2,
    "aiter_e8_ks4": 2,
    "aiter_e8_a16w4_gateup0_i48": 2,
    "aiter_e8_a16w4_gateup1_i48": 2,
    "aiter_n32k4_gguu_i48": 2,
    "aiter_n32k4_gguu_rows192_ks12": 2,
    "aiter_n32k4_gugu_rows192_ks12": 2,
    "aiter_n32k4_gugu_ks4": 2,
}
# Files that hold several fields: layout -> (input, output prefix).
FIELDS = {
    ("deepgemm_mega_moe_*", "deepgemm.mega_w13"): ("w13", "l1_weight"),
    ("deepgemm_mega_moe_*", "deepgemm.mega_w13_scale"): ("s13", "l1_scale"),
    ("deepgemm_mega_moe_*", "deepgemm.mega_w2_scale"): ("s2", "l2_scale"),
    ("deepgemm_mega_moe_*", "raw.weight"): ("w2", "l2_weight"),
}
PARAMETERS = {
    "tk351_hopper_scale_nw4_*": {"num_warps": 4, "kpad": 4},
    "tk351_hopper_scale_nw8_*": {"num_warps": 8, "kpad": 4},
    "tk*_interleaved_hopper_scale_nw8_*": {"num_warps": 8, "kpad": 4},
    "tknew_hopper_scale_nw4_*": {"num_warps": 4, "kpad": 2},
    "tknew_hopper_scale_nw8_*": {"num_warps": 8, "kpad": 2},
}


@dataclass(frozen=True)
class Vector:
    """Canonical bytes, the vendor's bytes, and where they may be compared (None: wherever the layout has a unit)."""

    name: str
    canonical: np.ndarray
    expected: np.ndarray
    source: np.ndarray | None = None
    parameters: dict[str, int] = field(default_factory=dict)


def files_of(layout: Layout) -> list[Path]:
    """The golden files that a layout names."""
    return sorted(p for p in GOLDEN.glob("*.npz") if any(fnmatch.fnmatch(p.stem, g) for g in layout.golden))


def load(path: Path, layout: Layout) -> Vector:
    """One file as seen by one layout."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    if "meta" in arrays:
        return _aiter(path.stem, arrays)
    given, prefix = _fields(path.stem, layout, arrays)
    canonical = arrays[given]
    if layout.field == "bias":
        canonical = canonical.view(np.uint8).reshape(*canonical.shape, -1)
    expected = arrays[f"{prefix}_bytes"].reshape(-1)
    parameters = next((p for g, p in PARAMETERS.items() if fnmatch.fnmatch(path.stem, g)), {})
    return Vector(path.stem, canonical, expected, None, parameters)


def _aiter(stem: str, arrays: dict[str, np.ndarray]) -> Vector:
    meta = json.loads(str(arrays["meta"]))
    canonical, source = arrays["inp"], arrays["src"].reshape(-1)
    assert meta["contiguous"], f"{stem} is not in storage order"
    experts = meta["kwargs"].get("experts_cnt") or EXPERTS.get(stem)
    if canonical.ndim == 2:
        canonical = canonical.reshape(experts or 1, -1, canonical.shape[1])
    width = meta["kwargs"].get("pad_k_to")
    if width:  # the writer padded K with zeros first, and those bytes are compared as well
        canonical = np.pad(canonical, ((0, 0), (0, 0), (0, -canonical.shape[2] % width)))
        source = None
    return Vector(stem, canonical, arrays["out"].reshape(-1), source)


def _fields(stem: str, layout: Layout, arrays: dict[str, np.ndarray]) -> tuple[str, str]:
    for (glob, name), found in FIELDS.items():
        if fnmatch.fnmatch(stem, glob) and name == layout.name:
            return found
    given = {"weight": "w", "scale": "s", "bias": "b"}[layout.field]
    return given, layout.field if f"{layout.field}_bytes" in arrays else "out"
