"""Random layers in canonical form, their float64 reference, the packed layer: for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shardproof.experts import Activation

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


@dataclass
class Case:
    experts: int
    hidden: int
    intermediate: int
    activation: Activation = Activation()  # noqa: RUF009 - frozen
    bias: bool = False
    weight_first: bool = False
    precision: str = "w4a16"
    scales: tuple[int, int] = (117, 123)
    device: str = "cuda"
    seed: int = 0

    def __post_init__(self) -> None:
        g = torch.Generator(device=self.device).manual_seed(self.seed)
        e, h, i = self.experts, self.hidden, self.intermediate

        def draw(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
            return torch.randint(low, high, shape, dtype=torch.uint8, device=self.device, generator=g)

        lo, hi = self.scales
        self.w13, self.s13 = draw(e, 2 * i, h // 2), draw(e, 2 * i, h // 32, low=lo, high=hi)
        self.w2, self.s2 = draw(e, h, i // 2), draw(e, h, i // 32, low=lo, high=hi)
        self.b13 = torch.randn(e, 2 * i, device=self.device, generator=g).bfloat16() if self.bias else None
        self.b2 = torch.randn(e, h, device=self.device, generator=g).bfloat16() if self.bias else None

    def layer(self, expert_map: torch.Tensor | None = None):
        from shardproof.kernels.cuda.layer import HopperExperts
        from shardproof.kernels.cuda.pack import pack_scale, pack_weight, pad_to

        e, h, i = self.experts, self.hidden, self.intermediate
        hp, ip = pad_to(h), pad_to(i)

        def padded(t: torch.Tensor, parts: int, rows: int, columns: int, value: int) -> torch.Tensor:
            t = t.reshape(e, parts, -1, t.shape[-1])
            t = torch.nn.functional.pad(t, (0, columns - t.shape[-1], 0, rows - t.shape[2]), value=value)
            return t.reshape(e, parts * rows, columns)

        return HopperExperts(
            pack_weight(padded(self.w13, 2, ip, hp // 2, 0), "w13"),
            pack_scale(padded(self.s13, 2, ip, hp // 32, 127), "w13"),
            pack_weight(padded(self.w2, 1, hp, ip // 2, 0), "w2"),
            pack_scale(padded(self.s2, 1, hp, ip // 32, 127), "w2"),
            self.b13,
            self.b2,
            experts=e,
            hidden=h,
            intermediate=i,
            activation=self.activation,
            weight_before_w2=self.weight_first,
            precision=self.precision,
            expert_map=expert_map,
        )

    def inputs(self, tokens: int, top_k: int, *, ids: str = "random", seed: int = 1, total: int | None = None):
        g = torch.Generator(device=self.device).manual_seed(seed)
        e = total or self.experts
        x = torch.randn(tokens, self.hidden, device=self.device, generator=g).bfloat16()
        if ids == "one":
            chosen = torch.full((tokens, top_k), e // 2, device=self.device)
        elif ids == "hot":
            chosen = torch.randint(0, e, (tokens, top_k), device=self.device, generator=g)
            chosen[:, 0] = 1
        else:
            chosen = torch.randint(0, e, (tokens, top_k), device=self.device, generator=g)
        weights = torch.rand(tokens, top_k, device=self.device, generator=g) + 0.1
        return x, chosen.int().contiguous(), (weights / weights.sum(1, keepdim=True)).float().contiguous()

    def dequantised(self, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        lut = VALUES.to(w.device)
        v = torch.stack([lut[(w & 15).long()], lut[(w >> 4).long()]], -1).flatten(-2)
        return v * torch.exp2(s.double() - 127).repeat_interleave(32, -1)

    def gate(self, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        a = self.activation
        limit = float("inf") if a.limit is None else a.limit
        if a.kind == "situ":
            return a.beta * torch.tanh(g / a.beta) * torch.sigmoid(g) * a.linear_beta * torch.tanh(u / a.linear_beta)
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
        return (u + 1) * g * torch.sigmoid(a.alpha * g) if a.kind == "swiglu_oai" else g * torch.sigmoid(g) * u

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self.precision == "w4a16":
            return x.bfloat16().double()
        n = x.shape[-1]
        b = torch.nn.functional.pad(x.bfloat16().float(), (0, -n % 128)).reshape(x.shape[0], -1, 128)
        amax = b.abs().amax(-1, keepdim=True).clamp(min=1e-4)
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 448)))
        q = (b.double() / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn)
        return (q.double() * scale).reshape(x.shape[0], -1)[:, :n]

    def reference(self, x, ids, weights, expert_map=None) -> torch.Tensor:
        out = torch.zeros(x.shape[0], self.hidden, dtype=torch.float64, device=x.device)
        local = ids.long() if expert_map is None else expert_map.long()[ids.long()]
        local = torch.where(ids < 0, -1, local)
        for e in range(self.experts):
            t, j = (local == e).nonzero(as_tuple=True)
            if not len(t):
                continue
            y = self.rounded(x[t]) @ self.dequantised(self.w13[e], self.s13[e]).T
            if self.b13 is not None:
                y = y + self.b13[e].double()
            h = self.gate(y[:, : self.intermediate], y[:, self.intermediate :])
            if self.weight_first:
                h = h * weights[t, j].double()[:, None]
            z = self.rounded(h) @ self.dequantised(self.w2[e], self.s2[e]).T
            if self.b2 is not None:
                z = z + self.b2[e].double()
            if not self.weight_first:
                z = z * weights[t, j].double()[:, None]
            out.index_add_(0, t, z)
        return out


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return ((out.double() - reference).norm() / reference.norm().clamp(min=1e-30)).item()
