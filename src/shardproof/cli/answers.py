"""Answers: what `--json` prints, field by field. `docs/json.md` is made from these types, and a test holds both.

Every answer also has `shardproof` (the version of this form, `show.JSON_VERSION`) and `command`.
"""

from typing import Annotated, Any, NotRequired, TypedDict

from shardproof.cli.layout_answers import Addressed, HeldAt, LayoutShown, LayoutsListed
from shardproof.cli.records import (
    DecisionRecord,
    DifferenceRecord,
    FindingRecord,
    PlanRecord,
    Problem,
    RankRecord,
    SpecRecord,
    TensorRow,
    VerdictRecord,
)  # fmt: skip


class Refusal(TypedDict):
    """Any command that refuses (exit code 2) prints this; it has no `command`."""

    error: Annotated[Problem, "why"]


class Inspected(TypedDict):
    """What a checkpoint holds."""

    root: Annotated[str, "its folder"]
    files: Annotated[int, "safetensors files"]
    tensors: Annotated[int, "in their headers"]
    bytes: Annotated[int, "of the tensors"]
    identity: Annotated[str, "digest of all headers, file names and sizes"]
    format: Annotated[str | None, "the dialect; null where none could be read"]
    family: Annotated[str | None, "the model type"]
    evidence: Annotated[list[str], "what speaks for the format (+) or against it (-)"]
    expert_bytes: Annotated[int | None, "of all experts' matrices"]
    layers: Annotated[dict[str, SpecRecord], "every MoE layer"]
    notes: Annotated[list[str], "what was guessed, counted or left out"]
    problems: Annotated[list[Problem], "all of them; exit code 1 where there is one"]


class Planned(TypedDict):
    """A plan for one number of ranks."""

    plan: Annotated[PlanRecord, "as it would be packed"]
    proof: Annotated[list[str], "what was shown of its cover"]
    notes: Annotated[list[str], "what was assumed or guessed, and known defects"]
    reason: Annotated[str, "why this backend"]
    ranks: Annotated[list[RankRecord], "what each rank would hold"]


class SizeRow(TypedDict):
    """One number of ranks on one backend: sizes, or `error` and `reason` where it cannot be."""

    tp: Annotated[int, "tensor-parallel ranks"]
    ep: Annotated[int, "expert-parallel ranks"]
    backend: Annotated[str, "its name"]
    blocks: NotRequired[Annotated[list[int], "numbers of blocks a rank, largest first"]]
    intermediate: NotRequired[Annotated[int, "padded I of a rank"]]
    hidden: NotRequired[Annotated[int, "padded H"]]
    bytes: NotRequired[Annotated[int, "of the fullest rank"]]
    waste_bytes: NotRequired[Annotated[int, "of padding in the worst rank"]]
    error: NotRequired[Annotated[dict[str, Any], "a problem, or the check of the backend that fails"]]
    reason: NotRequired[Annotated[str, "it as one line"]]


class Sizes(TypedDict):
    """`plan` with a range of sizes (`--tp 1..16`)."""

    sizes: Annotated[list[SizeRow], "one row a size and backend"]


class Refused(TypedDict):
    """`explain` where no backend fits, or the one that was named does not (exit code 1)."""

    backend: Annotated[None, "null"]
    error: Annotated[Problem | None, "why"]
    platform: Annotated[str, "`rocm:gfx950`"]
    verdicts: Annotated[list[VerdictRecord], "of every backend"]


class Packed(TypedDict):
    """What `pack` wrote."""

    out: Annotated[str, "the folder"]
    backend: Annotated[str, "for which it is"]
    ranks: Annotated[list[int], "that are there as asked; empty where other processes of this host are at work"]
    of: Annotated[int, "ranks of the plan"]
    held: Annotated[list[int], "all ranks that the folder holds"]
    bytes: Annotated[int, "of these ranks"]
    packed_bytes: Annotated[int, "that this run packed; 0 where they were there already"]
    seconds: Annotated[float, "of the run"]
    limited_by: Annotated[str | None, "what the run waited for"]
    digest: Annotated[str | None, "of the logical content; null where ranks are missing"]
    notes: Annotated[list[str], "what was assumed or guessed, and known defects"]


class Verified(TypedDict):
    """The outcome of `verify`; exit code 1 where `ok` is false."""

    ok: Annotated[bool, "whether every byte is right"]
    ranks: Annotated[list[int], "that were compared"]
    missing: Annotated[list[int], "ranks of the plan that are not packed"]
    bytes_compared: Annotated[int, "padding included"]
    digest: Annotated[str | None, "of the logical content; null where ranks are missing"]
    statements: Annotated[list[str], "what was shown of the plan's cover"]
    differences: Annotated[list[DifferenceRecord], "every tensor that is wrong"]


LayerFound = TypedDict(
    "LayerFound",
    {
        "layer": Annotated[str, "its key"],
        "rank": Annotated[str, "`6 of 8 (tp 6/8, ep 0/1)`; `not known` where only padding is held"],
        "tp": NotRequired[Annotated[int, "tensor-parallel ranks"]],
        "ep": NotRequired[Annotated[int, "expert-parallel ranks"]],
        "policy": NotRequired[Annotated[str, "how blocks are dealt"]],
        "intermediate": Annotated[str, "slice of I, and its padded size"],
        "hidden": NotRequired[Annotated[str, "H, and its padded size"]],
        "backend": NotRequired[Annotated[str, "who reads the tensors; `as found` where none was named"]],
        "kernel padding": NotRequired[Annotated[str, "what the kernel is told"]],
        "recognised": Annotated[list[str], "what was not given and is read from the bytes"],
        "findings": Annotated[list[FindingRecord], "what is wrong"],
        "tensors": Annotated[list[TensorRow], "the table"],
        "notes": Annotated[list[str], "what else a reader must know"],
    },
)
LayerFound.__doc__ = (
    "What was found out about one layer of a dump; what is left out is not known of dequantised dumps, nor of those "
    "that hold padding only."
)


class Diagnosed(TypedDict):
    """The outcome of `diagnose`; exit code 1 where `ok` is false. `--bundle` writes the same without weight bytes."""

    ok: Annotated[bool, "whether nothing harmful was found"]
    sentence: Annotated[str, "what to act on"]
    checkpoint: Annotated[str, "its folder; in a bundle only its name"]
    identity: Annotated[str, "digest of the checkpoint's headers, file names and sizes"]
    layers: Annotated[list[LayerFound], "every layer of the dump"]
    notes: Annotated[list[str], "what else a reader must know"]


class BenchRow(TypedDict):
    """One implementation at one number of tokens; times are of a whole layer call."""

    tokens: Annotated[int, "of a call"]
    name: Annotated[str, "of the implementation"]
    own: Annotated[bool, "whether it is shardproof's"]
    us: Annotated[float, "median over all rounds, in microseconds"]
    best: Annotated[float, "least over all rounds, in microseconds"]
    error: Annotated[float | None, "relative l2 error against the reference; null where that is no number"]
    ok: Annotated[bool, "whether it is within the bound for the dtype of activations"]
    gb_s: Annotated[float, "bytes of the experts in use a second, in 10^9"]
    mode: Annotated[str, "`graph` or `eager`"]
    to_rival: Annotated[float | None, "the best rival's median over this one's"]


class Benched(TypedDict):
    """The outcome of `bench`; exit code 1 where a row is not `ok`, or there is none."""

    subject: Annotated[str, "which layer"]
    device: Annotated[str, "where it ran"]
    torch: Annotated[str, "its version"]
    refused: Annotated[dict[str, str], "implementation -> why it did not run"]
    rows: Annotated[list[BenchRow], "in the order of tokens"]


class Tuned(TypedDict):
    """`bench --tune FILE`."""

    subject: Annotated[str, "which layer"]
    table: Annotated[dict[str, dict[str, list[list[Any]]]], "GPU -> precision -> [largest tokens an expert, geometry]"]
    seen: Annotated[list[dict[str, Any]], "what was measured: precision, tokens, geometry, us"]
    file: Annotated[str, "where the table was written"]


class Compiled(TypedDict):
    """`bench --compile`."""

    folder: Annotated[str, "where the machine code is kept"]
    activation: Annotated[str, "for which it is: `silu`, `swiglu_oai` or `situ`"]
    seconds: Annotated[dict[str, float], "geometry -> seconds of compiling; next to none where it was there"]


class Speech(TypedDict):
    """What a model said."""

    perplexity: Annotated[float | None, "a token of the text; null where it is beyond all numbers"]
    text: Annotated[str, "its greedy answer to the question"]
    seconds: Annotated[float, "that measuring took"]
    tokens_per_second: Annotated[float, "of the greedy answer, its prompt included in the time"]


class TrialRecord(Speech):
    """One way to cut the demo's model, packed, proven and run."""

    tp: Annotated[int, "tensor-parallel ranks"]
    ep: Annotated[int, "expert-parallel ranks"]
    gate_mode: Annotated[str | None, "rows of w13"]
    backend: Annotated[str, "for which it was packed"]
    run_by: Annotated[str, "the implementation"]
    mistake: Annotated[str | None, "the mistake that was put back"]
    intermediate: Annotated[list[int], "values of I of each rank"]
    padded_intermediate: Annotated[int, "with padding"]
    packed_bytes: Annotated[int, "of all ranks"]
    waste_bytes: Annotated[int, "of padding"]
    empty_ranks: Annotated[int, "that hold no block"]
    pack_seconds: Annotated[float, "of packing"]
    verify_seconds: Annotated[float, "of verifying"]
    verified: Annotated[bool, "whether every byte is right"]
    digest: Annotated[str | None, "of the logical content"]
    differences: Annotated[int, "tensors that are wrong"]
    named: Annotated[list[str], "mistakes that verify named"]
    sentence: Annotated[str, "the first of them in words"]


class DemoCheck(TypedDict):
    """Something that must hold in the demo."""

    what: Annotated[str, "the claim"]
    ok: Annotated[bool, "whether it holds"]
    seen: Annotated[str, "what was seen"]


class Demonstrated(TypedDict):
    """The outcome of `demo`; exit code 1 where `ok` is false."""

    ok: Annotated[bool, "whether every check holds"]
    subject: Annotated[str, "the model"]
    question: Annotated[str, "that it is asked"]
    text_tokens: Annotated[int, "that perplexity is taken on"]
    layers: Annotated[int, "of the model"]
    spec: Annotated[SpecRecord, "of each"]
    backend: Annotated[DecisionRecord, "which backend was chosen"]
    original: Annotated[Speech, "the model as it is published"]
    mxfp4: Annotated[Speech, "with its FFN weights in MXFP4"]
    trials: Annotated[list[TrialRecord], "every way to cut it"]
    mistakes: Annotated[list[TrialRecord], "every mistake, put back"]
    checks: Annotated[list[DemoCheck], "everything that must hold"]
    seconds: Annotated[float, "in all"]
    kept: Annotated[str | None, "where `--keep` left the files"]


ANSWERS: dict[str, tuple[type, ...]] = {
    "inspect": (Inspected,),
    "plan": (Planned, Sizes),
    "explain": (DecisionRecord, Refused),
    "pack": (Packed,),
    "verify": (Verified,),
    "diagnose": (Diagnosed,),
    "bench": (Benched, Tuned, Compiled),
    "demo": (Demonstrated,),
    "layouts list": (LayoutsListed,),
    "layouts show": (LayoutShown,),
    "layouts address": (Addressed,),
    "layouts at": (HeldAt,),
}
"""What each command prints; where there are several, the later ones say when."""
