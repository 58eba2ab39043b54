"""Records: what stands inside the JSON of several commands, field by field. `docs/json.md` is made from these types."""

from typing import Annotated, Literal, NotRequired, TypedDict


class Problem(TypedDict):
    """A refusal or a problem: a `ShardproofError` as data. Fields that say nothing are left out."""

    code: Annotated[str, "stable; [errors](errors.md) explains each"]
    what: Annotated[str, "one sentence; its wording may change"]
    file: NotRequired[Annotated[str, "the file or folder"]]
    tensor: NotRequired[Annotated[str, "the tensor's name"]]
    layer: NotRequired[Annotated[str, "the layer"]]
    expert: NotRequired[Annotated[str, "the expert's global id"]]
    rank: NotRequired[Annotated[str, "the rank"]]
    found: NotRequired[Annotated[str, "what was found"]]
    needed: NotRequired[Annotated[str, "what was needed"]]
    next_step: Annotated[str | None, "what to do"]


class ActivationRecord(TypedDict):
    """A gated activation; which parameters count is a matter of its kind ([moe](moe.md))."""

    kind: Annotated[Literal["silu", "swiglu_oai", "situ"], "which one"]
    limit: Annotated[float | None, "clamp of gate and up; null for none"]
    alpha: Annotated[float, "of swiglu_oai"]
    beta: Annotated[float, "of situ"]
    linear_beta: Annotated[float, "of situ"]


class SpecRecord(TypedDict):
    """What one MoE layer is (`ExpertSpec`)."""

    family: Annotated[str, "the model type"]
    experts: Annotated[int, "E"]
    hidden: Annotated[int, "H"]
    intermediate: Annotated[int, "I"]
    top_k: Annotated[int, "experts a token"]
    activation: Annotated[ActivationRecord, "between w13 and w2"]
    bias: Annotated[bool, "whether there are biases"]
    weight_before_w2: Annotated[bool, "whether the routing weight is multiplied before w2"]


class RecipeRecord(TypedDict):
    """How packed experts must be for one backend (`Recipe`)."""

    backend: Annotated[str, "its name"]
    layouts: Annotated[dict[str, str], "`w13.weight`, `w13.scale`, ... -> layout id"]
    align_hidden: Annotated[int, "H is rounded up to this multiple"]
    align_intermediate: Annotated[int, "a rank's I is rounded up to this multiple"]
    bias_dtype: Annotated[Literal["float32", "bfloat16"], "of packed biases"]
    activation_dtype: Annotated[str, "what the kernel computes with"]
    gate_mode: Annotated[Literal["separated", "interleaved"] | None, "rows of w13; null where there is one order only"]
    version: Annotated[str | None, "of the package that the layouts hold for"]
    notes: Annotated[list[str], "what a user must know"]


class CheckRecord(TypedDict):
    """One condition of a backend."""

    condition: Annotated[str, "what is asked"]
    ok: Annotated[bool, "whether it holds"]
    found: Annotated[str, "what was found"]
    needed: Annotated[str, "what was needed"]
    remedy: Annotated[str, "what would change it"]


class VerdictRecord(TypedDict):
    """What one backend says to a request."""

    backend: Annotated[str, "its name"]
    summary: Annotated[str, "what it is"]
    fits: Annotated[bool, "whether every condition holds"]
    place: Annotated[int | None, "in the priority list, from 1; null where the list does not name it"]
    failed: Annotated[str | None, "the first condition that does not hold"]
    checks: Annotated[list[CheckRecord], "every condition"]
    recipe: Annotated[RecipeRecord | None, "where it fits"]
    warnings: Annotated[list[str], "known defects of the vendor's code that this meets"]


class DecisionRecord(TypedDict):
    """The backend that was chosen, and every other one's verdict (`Decision`)."""

    backend: Annotated[str, "the chosen one"]
    reason: Annotated[str, "why this one"]
    platform: Annotated[str, "`rocm:gfx950`"]
    family: Annotated[str, "the model type"]
    tp: Annotated[int, "tensor-parallel ranks"]
    ep: Annotated[int, "expert-parallel ranks"]
    recipe: Annotated[RecipeRecord, "what it needs"]
    priority: Annotated[list[str], "the priority list"]
    notes: Annotated[list[str], "what was assumed, and who was passed over"]
    warnings: Annotated[list[str], "known defects of the vendor's code that this meets"]
    verdicts: Annotated[list[VerdictRecord], "of every backend: the priority list's first, then by name"]


class ShapeRecord(TypedDict):
    """How layers of one spec are dealt and padded (`LayerShape`)."""

    spec: Annotated[SpecRecord, "the whole layer"]
    intervals: Annotated[list[list[int]], "blocks [start, stop) of each tensor-parallel rank"]
    owners: Annotated[list[list[int]], "expert ids of each expert-parallel rank, in local order"]
    hidden: Annotated[int, "padded H"]
    intermediate: Annotated[int, "padded I of a rank"]


class PlanRecord(TypedDict):
    """A plan, as packed folders keep it (`Plan`)."""

    format: Annotated[str, "of the checkpoint"]
    family: Annotated[str, "the model type"]
    source: Annotated[str, "where the checkpoint lay"]
    identity: Annotated[str, "digest of the checkpoint's headers, file names and sizes"]
    recipe: Annotated[RecipeRecord, "for which backend"]
    tp: Annotated[int, "tensor-parallel ranks"]
    ep: Annotated[int, "expert-parallel ranks"]
    policy: Annotated[Literal["balanced", "ceil"], "how blocks are dealt"]
    shapes: Annotated[list[ShapeRecord], "the distinct ones"]
    layers: Annotated[dict[str, int], "layer -> number of its shape"]


class KernelPadding(TypedDict):
    """Padding in values, as AITER's fused_moe takes it."""

    hidden_pad: Annotated[int, "padded H less H"]
    intermediate_pad: Annotated[int, "padded I less this rank's I"]


class RankRecord(TypedDict):
    """What one rank of a plan holds; slices are the first layer's, bytes those of all layers."""

    rank: Annotated[int, "its number, TP fastest"]
    tp_rank: Annotated[int, "among the tensor-parallel ranks"]
    ep_rank: Annotated[int, "among the expert-parallel ranks"]
    blocks: Annotated[list[int], "[start, stop) of I in blocks of 32"]
    rows: Annotated[list[int], "[start, stop) of I in values"]
    valid: Annotated[int, "values of I that are not padding"]
    padded: Annotated[int, "values of I with padding"]
    kernel: Annotated[KernelPadding, "what the kernel is told"]
    experts: Annotated[list[int], "global ids, in local order"]
    bytes: Annotated[int, "of the packed rank, padding included"]
    waste_bytes: Annotated[int, "of padding in weights and scales"]
    read_bytes: Annotated[int, "of weights and scales that are read"]


class DifferenceRecord(TypedDict):
    """One packed tensor that is not what its checkpoint says."""

    rank: Annotated[int, "whose"]
    tensor: Annotated[str, "`layers.L.experts.w13.weight`; `(digest)` where only the recorded digest is wrong"]
    wrong: Annotated[int, "bytes that are wrong"]
    total: Annotated[int, "bytes that were compared"]
    first: Annotated[list[str], "up to four of them: address, place in the checkpoint, found, expected"]
    mistake: Annotated[str | None, "stable name of the known mistake that gives these bytes; several are joined by +"]
    sentence: Annotated[str, "the mistake in words, with issues and repair"]


class FindingRecord(TypedDict):
    """One thing that is wrong with a dump."""

    name: Annotated[str, "stable name of the mistake"]
    sentence: Annotated[str, "it in words"]
    tensors: Annotated[list[str], "where it shows: `w13.weight`"]
    severity: Annotated[Literal["wrong", "note"], "`note` is harmless by itself"]
    issues: Annotated[list[str], "where it was met before"]
    repair: Annotated[str, "what to do"]
    explanation: Annotated[str, "why it happens"]
    also: Annotated[list[str], "other mistakes that give the very same bytes"]


class TensorRow(TypedDict):
    """One tensor of a dump, compared with what is needed."""

    tensor: Annotated[str, "its name in the dump"]
    slot: Annotated[str, "`w13.weight`"]
    share: Annotated[float, "of content bytes that stand where they are needed, 0 to 1"]
    found: Annotated[str, "layout id that was recognised"]
    needed: Annotated[str, "layout id that is needed"]
    wrong: Annotated[int, "bytes that are wrong"]
    total: Annotated[int, "bytes that were compared"]
    first: Annotated[str, "place in the checkpoint of the first wrong byte"]
    address: Annotated[int | None, "its address in the dump"]
    expected_byte: NotRequired[Annotated[int | None, "left out by `--bundle`"]]
    found_byte: NotRequired[Annotated[int | None, "left out by `--bundle`"]]
    explained_by: Annotated[list[str], "names of mistakes"]
    notes: Annotated[list[str], "what else was seen"]
