"""shardproof's layer for the peers' bench: `register(bench)` gives it by precision and by geometry."""

from __future__ import annotations

import torch

from shardproof.experts import Activation


def register(bench):
    from shardproof.kernels.cuda import builds, layer, pack

    packed: list[torch.Tensor] = []  # of one problem
    layers: dict[str, layer.HopperExperts] = {}  # its layer by precision, which geometries share
    problem = []

    class Ours:
        name = "shardproof w4a16"
        precision = "w4a16"
        build = None

        def __init__(self, p):
            self.p = p
            self.dry = bench.args.nogpu
            if self.dry:
                return
            if problem != [p]:
                problem[:] = [p]
                packed.clear()
                layers.clear()
                for t, s, c in ((p.w13, p.s13, "w13"), (p.w2, p.s2, "w2")):
                    packed.extend((pack.pack_weight(t, c), pack.pack_scale(s, c)))
            if self.precision not in layers:
                layers[self.precision] = layer.HopperExperts(
                    *packed,
                    experts=p.E,
                    hidden=p.H,
                    intermediate=p.I,
                    activation=Activation("silu", limit=p.limit),
                    precision=self.precision,
                )
            self.layer = layers[self.precision]

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
