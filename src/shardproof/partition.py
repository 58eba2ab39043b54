"""Who holds which blocks and which experts.

Everything here is computed from the checkpoint's logical shape. Padding is a later step (`plan`) and can
never move an offset: computing offsets from padded sizes is the mistake that six engines made.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, SupportsIndex, TypeAlias

from shardproof.arguments import whole_number
from shardproof.errors import PartitionError

Policy: TypeAlias = Literal["balanced", "ceil"]
Placement: TypeAlias = Literal["linear", "round_robin"]
POLICIES: tuple[Policy, ...] = ("balanced", "ceil")
MOST_RANKS = 1 << 16
"""A slip of the hand (`--tp 1..99999999`) is refused before its lists fill the memory."""
PLACEMENTS: tuple[Placement, ...] = ("linear", "round_robin")


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a TP x EP group; TP varies fastest in `index`."""

    tp_rank: int
    ep_rank: int
    tp: int
    ep: int

    @property
    def index(self) -> int:
        """Position among all `tp * ep` ranks."""
        return self.ep_rank * self.tp + self.tp_rank

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.ep

    def __str__(self) -> str:
        return f"{self.index} of {self.world} (tp {self.tp_rank}/{self.tp}, ep {self.ep_rank}/{self.ep})"


def ranks(tp: int, ep: int) -> list[Rank]:
    """All ranks of a TP x EP group in index order. Raises PartitionError `partition.size`, ArgumentError."""
    _check_size("tp", tp)
    _check_size("ep", ep)
    _check_size("tp x ep", tp * ep)
    return [Rank(t, e, tp, ep) for e in range(ep) for t in range(tp)]


def _check_size(name: str, size: int) -> None:
    if whole_number(name, size) < 1:
        raise PartitionError(
            "partition.size", f"{name} must be at least 1", found=size, needed=">= 1", next_step="ask for at least 1"
        )
    if size > MOST_RANKS:
        raise PartitionError(
            "partition.size", f"{name} is more ranks than anybody has", found=size, needed=f"<= {MOST_RANKS}",
            next_step="correct the number",
        )  # fmt: skip


def block_intervals(
    blocks: int, tp: int, policy: Policy = "balanced", *, allow_empty: bool = False
) -> list[tuple[int, int]]:
    """Deal `blocks` blocks to `tp` ranks in contiguous runs [start, stop).

    balanced   run lengths differ by at most one, longer runs first
    ceil       ceil(blocks / tp) a rank; the last ranks are short or empty

    Raises PartitionError `partition.empty_rank` where a rank would get nothing and `allow_empty` is not set,
    `partition.size` or `partition.policy`.
    """
    _check_size("tp", tp)
    if policy == "balanced":
        short, longer = divmod(blocks, tp)
        stops = [short * (r + 1) + min(r + 1, longer) for r in range(tp)]
    elif policy == "ceil":
        run = -(-blocks // tp)
        stops = [min(blocks, run * (r + 1)) for r in range(tp)]
    else:
        raise PartitionError(
            "partition.policy",
            "unknown policy",
            found=repr(policy),
            needed=" or ".join(POLICIES),
            next_step="choose one of the two",
        )
    intervals = list(zip([0, *stops[:-1]], stops, strict=True))
    empty = [r for r, (start, stop) in enumerate(intervals) if start == stop]
    if empty and not allow_empty:
        raise PartitionError(
            "partition.empty_rank",
            f"{len(empty)} of {tp} tensor-parallel ranks would hold no block",
            rank=", ".join(map(str, empty)),
            found=f"{blocks} blocks of 32 for tp {tp} ({policy})",
            needed=f"tp <= {blocks}" if tp > blocks else "policy balanced",
            next_step="use fewer ranks, or allow empty ranks (--allow-empty)",
        )
    return intervals


def expert_owners(
    experts: int,
    ep: int,
    placement: Placement | Mapping[int, Sequence[int]] | Sequence[Sequence[int]] = "linear",
) -> list[tuple[int, ...]]:
    """Global expert ids that each expert-parallel rank holds, in local order.

    linear        contiguous runs, the first (experts % ep) ranks hold one more
    round_robin   expert e on rank e % ep
    explicit      one sequence of ids a rank; an expert may stand on several ranks (a replica)

    Raises PartitionError `partition.cover`, `partition.expert_id`, `partition.duplicate`,
    `partition.empty_rank`, `partition.placement` or `partition.size`.
    """
    _check_size("ep", ep)
    owners = (
        _named_placement(experts, ep, placement)
        if isinstance(placement, str)
        else [tuple(_expert_id(e, rank) for e in row) for rank, row in enumerate(_rows(ep, placement))]
    )
    _check_owners(experts, ep, owners)
    return owners


def _named_placement(experts: int, ep: int, placement: str) -> list[tuple[int, ...]]:
    if placement == "linear":
        return [tuple(range(a, b)) for a, b in block_intervals(experts, ep, allow_empty=True)]
    if placement == "round_robin":
        return [tuple(range(r, experts, ep)) for r in range(ep)]
    raise PartitionError(
        "partition.placement",
        "unknown expert placement",
        found=repr(placement),
        needed=" or ".join(PLACEMENTS),
        next_step="choose one of the two, or give an explicit map: the expert ids of each rank",
    )


def _rows(ep: int, placement: Mapping[int, Sequence[int]] | Sequence[Sequence[int]]) -> list[Sequence[int]]:
    rows = list(placement.values() if isinstance(placement, Mapping) else placement) if _is_list(placement) else []
    if not _is_list(placement) or not all(map(_is_list, rows)):
        raise PartitionError(
            "partition.placement", "the expert map does not hold a list of expert ids a rank",
            found=f"{type(placement).__name__} {str(placement)[:80]}", needed=" or ".join(PLACEMENTS) + ", or lists",
            next_step="give one list of expert ids for each expert-parallel rank: [[0, 1], [2, 3]]",
        )  # fmt: skip
    if not isinstance(placement, Mapping):
        return rows
    strange = [str(rank) for rank in placement if rank not in range(ep)]
    if strange:
        raise PartitionError(
            "partition.cover", "the expert map names a rank that does not exist",
            rank=", ".join(strange), needed=f"0..{ep - 1}",
            next_step="number the ranks of the map from 0, one row a rank",
        )  # fmt: skip
    return [placement.get(rank, ()) for rank in range(ep)]


def _is_list(found: object) -> bool:
    return isinstance(found, Iterable) and not isinstance(found, str)


def _expert_id(found: object, rank: int) -> int:
    if not isinstance(found, SupportsIndex) or isinstance(found, bool):
        raise PartitionError(
            "partition.expert_id",
            "an expert id is not a whole number",
            rank=rank,
            found=repr(found),
            needed="integers",
            next_step="write the expert ids as integers",
        )
    return operator.index(found)


def _check_owners(experts: int, ep: int, owners: Sequence[tuple[int, ...]]) -> None:
    if len(owners) != ep:
        raise PartitionError(
            "partition.cover",
            "the expert map does not have one row a rank",
            found=len(owners),
            needed=ep,
            next_step="give one list of expert ids for each expert-parallel rank",
        )
    for rank, row in enumerate(owners):
        outside = [e for e in row if not 0 <= e < experts]
        if outside:
            raise PartitionError(
                "partition.expert_id",
                "the expert map names an expert that does not exist",
                rank=rank,
                expert=outside[0],
                found=outside[0],
                needed=f"0..{experts - 1}",
                next_step="correct the id, or remove it from the map",
            )
        if len(set(row)) != len(row):
            twice = next(e for e in row if row.count(e) > 1)
            raise PartitionError(
                "partition.duplicate",
                "a rank holds one expert twice",
                rank=rank,
                expert=twice,
                found=f"{row.count(twice)} copies",
                needed="at most one copy a rank",
                next_step="keep one copy a rank; replicas stand on different ranks",
            )
        if not row:
            raise PartitionError(
                "partition.empty_rank",
                "an expert-parallel rank would hold no expert",
                rank=rank,
                found=f"{experts} experts for ep {ep}",
                needed=f"ep <= {experts}",
                next_step="use fewer expert-parallel ranks",
            )
    missing = sorted(set(range(experts)).difference(*owners))
    if missing:
        raise PartitionError(
            "partition.cover",
            "an expert is on no rank" if len(missing) == 1 else f"{len(missing)} experts are on no rank",
            expert=", ".join(map(str, missing[:8])),
            found="0 ranks",
            needed="at least one rank for every expert",
            next_step="add the missing experts to the map",
        )
