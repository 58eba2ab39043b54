"""shardproof's layer for the peers' bench: `register(bench)` gives it by precision and by geometry."""

from __future__ import annotations

import torch

from shardproof.experts import Activation


def register(bench):
    from shardproof.kernels.cuda import builds, layer, pack

    class Ours:
        name = "shardproof w4a16"
        precision = "w4a16"
        build = None

        def __init__(self, p):
            self.p = p
            self.dry = bench.args.nogpu
            packed = [
                f(t, s)
                for s, w, c in (("w13", p.w13, p.s13), ("w2", p.w2, p.s2))
                for f, t in ((pack.pack_weight, w), (pack.pack_scale, c))
            ]
            if self.dry:
                return
            self.layer = layer.HopperExperts(
                *packed,
                experts=p.E,
                hidden=p.H,
                intermediate=p.I,
                activation=Activation("silu", limit=p.limit),
                precision=self.precision,
            )

        def __call__(self, x, ids, w):
            if self.dry:
                return torch.empty_like(x)
            if self.build is None:
                return self.layer(x, ids, w)
            out = torch.empty_like(x)
            self.layer.run(self.build, x, ids, w, out)
            return out

    class Ours8(Ours):
        name = "shardproof w4a8"
        precision = "w4a8"

    table = {"ours16": Ours, "ours8": Ours8}
    for b in builds.BUILDS.values():
        for precision in ("w4a8",) if b.fp8 else ("w4a16", "w4a8"):
            name = f"{b.name}:{precision}"
            table[name] = type(name, (Ours,), {"name": f"geometry {name}", "build": b, "precision": precision})
    return table
