"""The layer in float64, straight from canonical bytes, and a bound on what a precision mode may be off by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shardproof.experts import Activation
from shardproof.kernels.cpu import CpuExperts
from shardproof.mxfp4 import decode
from tests.kernels.cpu.packing import pack_w2, pack_w13

STEP = {"int8": 1 / 254, "int16": 1 / 65534, "float32": 0.0}
"""Largest rounding error of an activation, as a part of its block's largest magnitude."""


@dataclass
class Case:
    """A layer's canonical tensors and one call's inputs."""

    w13: np.ndarray
    s13: np.ndarray
    w2: np.ndarray
    s2: np.ndarray
    x: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    b13: np.ndarray | None = None
    b2: np.ndarray | None = None
    activation: Activation = field(default_factory=Activation)
    before: bool = False

    @property
    def sizes(self):
        """(E, H, I)."""
        return self.w13.shape[0], self.w2.shape[1], self.w13.shape[1] // 2

    def experts(self, **options):
        """CpuExperts over the packed tensors."""
        e, h, i = self.sizes
        return CpuExperts(
            *pack_w13(self.w13, self.s13), self.b13, *pack_w2(self.w2, self.s2), self.b2,
            experts=e, hidden=h, intermediate=i, activation=self.activation, weight_before_w2=self.before,
            **options,
        )  # fmt: skip

    def run(self, out=None, **options):
        """The kernels' result; `out` is poisoned by the caller."""
        return self.experts(**options).forward(self.x, self.ids, self.weights, out)


def random_case(rng, e, h, i, m, k, *, low=119, high=124, bias=False, activation=None, before=False, holes=False):
    """Random codes, scales 2**(low-127) to 2**(high-128), normal x, random experts (with repeats)."""
    ids = rng.integers(-1 if holes else 0, e, (m, k)).astype(rng.choice([np.int32, np.int64]))
    return Case(
        w13=rng.integers(0, 256, (e, 2 * i, h // 2), dtype=np.uint8),
        s13=rng.integers(low, high, (e, 2 * i, h // 32), dtype=np.uint8),
        w2=rng.integers(0, 256, (e, h, i // 2), dtype=np.uint8),
        s2=rng.integers(low, high, (e, h, i // 32), dtype=np.uint8),
        x=rng.standard_normal((m, h)).astype(np.float32),
        ids=ids,
        weights=rng.random((m, k)).astype(np.float32),
        b13=rng.standard_normal((e, 2 * i)).astype(np.float32) if bias else None,
        b2=rng.standard_normal((e, h)).astype(np.float32) if bias else None,
        activation=activation or Activation(),
        before=before,
    )


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def gated(act, gate, up):
    """h(g, u) in float64, from the formulas of shardproof.experts.Activation."""
    if act.kind == "situ":
        linear = act.linear_beta * np.tanh(up / act.linear_beta)
        return act.beta * np.tanh(gate / act.beta) * _sigmoid(gate) * linear
    if act.limit is not None:
        gate, up = np.minimum(gate, act.limit), np.clip(up, -act.limit, act.limit)
    if act.kind == "swiglu_oai":
        return (up + 1) * gate * _sigmoid(act.alpha * gate)
    return gate * _sigmoid(gate) * up


def _block_error(v, step):
    blocks = np.abs(v).reshape(-1, 32).max(axis=1)
    return np.repeat(blocks, 32) * step


def layer(case, step=None):
    """The float64 result [M, H]; with `step` (silu, no bias) also the largest allowed error of each element."""
    _, h, i = case.sizes
    w13, w2 = decode(case.w13, case.s13).astype(np.float64), decode(case.w2, case.s2).astype(np.float64)
    out, bound = np.zeros((len(case.x), h)), np.zeros((len(case.x), h))
    ulp = 2.0**-23
    for token, slot in zip(*np.nonzero(case.ids >= 0), strict=True):
        expert, weight = case.ids[token, slot], float(case.weights[token, slot])
        x = case.x[token].astype(np.float64)
        both = w13[expert] @ x + (0 if case.b13 is None else case.b13[expert])
        hidden = gated(case.activation, both[:i], both[i:]) * (weight if case.before else 1)
        bias = 0 if case.b2 is None else case.b2[expert]
        y = w2[expert] @ hidden + bias
        out[token] += y * (1 if case.before else weight)
        if step is None:
            continue
        off = np.abs(w13[expert]) @ (_block_error(x, step) + h * ulp * np.abs(x))
        g, u, dg, du = both[:i], both[i:], off[:i], off[i:]
        dh = 1.1 * dg * (np.abs(u) + du) + np.abs(g) * _sigmoid(g) * du + 8 * ulp * np.abs(hidden)
        dh *= weight if case.before else 1
        dh += _block_error(np.abs(hidden) + dh, step)
        dy = np.abs(w2[expert]) @ (dh + i * ulp * np.abs(hidden))
        bound[token] += (dy + 4 * ulp * np.abs(y)) * (1 if case.before else weight)
    return (out, bound) if step is not None else out


def relative(got, want):
    """Root mean square error over root mean square of `want`."""
    return float(np.sqrt(np.mean((got - want) ** 2)) / max(np.sqrt(np.mean(want**2)), 1e-300))
