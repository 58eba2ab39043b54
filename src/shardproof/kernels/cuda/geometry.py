"""One geometry of a Hopper kernel: its macros, its threads and its shared memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Build:
    """One geometry of the layer kernel; the fields are the macros of csrc/params.cuh.

    `wgs` consumer warpgroups, each with `mw` tiles of 64 weight rows, `kw` of them sharing a tile by
    splitting K; `widths` are the token counts that are compiled, ascending; `w_depth` and `x_depth` stages
    of weights and tokens; `each` chunks of 64 values a warpgroup and stage; `narrow` takes warp-wide
    products; `overlap` unpacks weights while products run, `pair` chunks at a time; `once` lets weights
    leave the L2 cache first. Of e4m3 products (`fp8`), `direct` places codes as they are and multiplies the
    products of each block by its scale, for few tokens; others look scaled codes up. `results`: consumers leave
    rows of w2, and but for `narrow` activations, where else they leave sums (csrc/drain.cuh). `activation` is 0 silu,
    1 swiglu_oai, 2 situ; `checked` is for compute-sanitizer, which follows arrivals by thread. `many` is the
    kernel for many tokens (csrc/many.cu): `w_depth` stages of `each` chunks, weights and tokens together, `mw`
    and `kw` 1, `cluster` blocks that share a token tile. `consumer_regs` and `producer_regs` are registers a
    thread.
    """

    name: str
    wgs: int
    mw: int
    kw: int
    widths: tuple[int, ...]
    w_depth: int
    x_depth: int
    consumer_regs: int
    producer_regs: int
    each: int = 2
    fp8: bool = False
    narrow: bool = False
    overlap: bool = False
    pair: int = 1
    once: bool = True
    direct: bool = False
    results: bool = False
    many: bool = False
    cluster: int = 1
    activation: int = 0
    checked: bool = False

    @property
    def nmax(self) -> int:
        """Tokens a tile at most."""
        return self.widths[-1]

    @property
    def threads(self) -> int:
        """Threads a block: consumers, a warpgroup of producers, and but for `many` one of finishers (`mw` 1)."""
        return self.wgs * 128 + 128 + 128 * (self.mw == 1 and not self.many)

    @property
    def pieces(self) -> int:
        """Parts of a tile's tokens that take turns, where registers do not hold all their unscaled sums."""
        return 2 if self.many and self.fp8 and self.nmax > 192 else 1

    @property
    def small_slots(self) -> int:
        """Routed slots that every block sorts by itself."""
        return 512 if self.kw > 1 else 256 if self.narrow else 0

    @property
    def boxes(self) -> bool:
        """Whether weights are copied by tensor maps."""
        return self.many or self.mw > 1

    @property
    def token_bytes(self) -> int:
        """Bytes of a stage that a token of csrc/many.cu has, scales included."""
        return self.each // 2 * 132 if self.fp8 else self.each * 128

    @property
    def chunks(self) -> int:
        """64-value chunks of K a stage."""
        return self.kw * self.each

    @property
    def row64(self) -> int:
        """64-row groups of a block tile."""
        return self.wgs // self.kw * self.mw

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a launch: `Shared::END_SMALL` of csrc/params.cuh, `Many::END`."""
        if self.many:
            stage = -(-self.nmax * self.token_bytes // 1024) * 1024 + self.wgs * self.each * (2048 + 128)
            return self.w_depth * (stage + 16) + 2 * (self.nmax * 8 + self.wgs * 512 + 32 + 32) + 128
        step = 2 if self.fp8 else 1
        atoms = self.chunks // step
        x = self.x_depth * atoms * self.nmax * 128
        w = self.w_depth * self.row64 * self.chunks * (2048 + 128)
        xs = self.x_depth * atoms * self.nmax * 4 if self.fp8 else 0
        tile = self.wgs * self.nmax * 256 if self.narrow or not self.results else self.nmax * self.row64 * 128
        drained = 2 * tile + self.wgs * 512
        staged = max(self.wgs * self.nmax * 128, self.nmax * self.row64 * 64)
        meta = 4 * self.nmax * 12 + 4 * 32 + 128
        barriers = 16 * (self.w_depth + self.x_depth) + 16 * 4 + 32 + 16
        return x + w + xs + (drained if self.mw == 1 else staged) + meta + barriers + 20 * self.small_slots

    @property
    def macros(self) -> list[str]:
        """The compiler's -D options."""
        values = {
            "WGS": self.wgs,
            "MW": self.mw,
            "KW": self.kw,
            "NMAX": self.nmax,
            **{f"N{i}": n for i, n in enumerate((*self.widths, 0, 0, 0)[:4])},
            "W_DEPTH": self.w_depth,
            "X_DEPTH": self.x_depth,
            "EACH": self.each,
            "FP8": int(self.fp8),
            "NARROW": int(self.narrow),
            "OVERLAP": int(self.overlap),
            "PAIR": self.pair,
            "DIRECT": int(self.direct),
            "ONCE": int(self.once),
            "PIECES": self.pieces,
            "CLUSTER": self.cluster,
            "MANY": int(self.many),
            "RESULTS": int(self.results),
            "ACTIVATION": self.activation,
            "CHECKED": int(self.checked),
            "SMALL_SLOTS": self.small_slots,
            "BOXES": int(self.boxes),
            "CONSUMER_REGS": self.consumer_regs,
            "PRODUCER_REGS": self.producer_regs,
        }
        return [f"-D{k}={v}" for k, v in values.items()]
