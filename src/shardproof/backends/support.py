"""The support tables of docs/backends.md, written from the declarations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardproof.backends.backend import Request
from shardproof.backends.conditions import Activations, Condition, ExpertParallel, NoBias, RunsOn
from shardproof.backends.kernel import Kernel, Variant
from shardproof.backends.packages import Needs
from shardproof.backends.platform import describe
from shardproof.backends.registry import catalogue
from shardproof.experts import Activation, ExpertSpec

Choose = Callable[[Request], str]
"""Says which backend a request gets, or why none."""

SILU10, OAI, SITU = Activation("silu", 10.0), Activation("swiglu_oai", 7.0), Activation("situ")

MODELS: tuple[tuple[str, str, ExpertSpec], ...] = (
    ("DeepSeek-V4-Pro", "deepseek", ExpertSpec("deepseek_v4", 384, 7168, 3072, 6, SILU10, weight_before_w2=True)),
    ("DeepSeek-V4-Flash", "deepseek", ExpertSpec("deepseek_v4", 256, 4096, 2048, 6, SILU10, weight_before_w2=True)),
    ("gpt-oss-120b", "gpt_oss", ExpertSpec("gpt_oss", 128, 2880, 2880, 4, OAI, bias=True)),
    ("Kimi-K3", "compressed_tensors", ExpertSpec("kimi_k3", 896, 3584, 3072, 16, SITU)),
    ("Qwen3-235B-A22B", "quark", ExpertSpec("qwen3_moe", 128, 4096, 1536, 8)),
    ("MiniMax-M3", "quark", ExpertSpec("minimax_m3", 128, 6144, 3072, 4, OAI)),
)
"""Name, checkpoint format and sizes (model configurations of November 2026)."""

PLATFORMS = (
    *("cpu", "cuda:sm80", "cuda:sm90", "cuda:sm100", "cuda:sm120"),
    *("rocm:gfx942", "rocm:gfx950", "rocm:gfx1250", "xpu:any"),
)


def choices(choose: Choose) -> str:
    """Markdown table: which backend each model gets on each platform with 8 tensor-parallel ranks."""
    rows = [
        [name, fmt, *(choose(Request(spec, describe(where), tp=8)) for where in PLATFORMS)]
        for name, fmt, spec in MODELS
    ]
    return _table(("model", "format", *PLATFORMS), rows)


def support() -> str:
    """Markdown table: one row a backend, with its conditions."""
    head = (
        "backend",
        "runs on",
        "package",
        "activations",
        "bias",
        "expert parallel",
        "activation dtypes",
        "also needs",
    )
    return _table(head, [_conditions_row(kernel) for kernel in _kernels()])


def layouts() -> str:
    """Markdown table: one row a way of reading weights, in each backend's order of preference."""
    head = ("backend", "kernel", "when", "H, I to", "rows of w13", "w13", "w2", "biases")
    return _table(head, [_layout_row(kernel, variant) for kernel in _kernels() for variant in kernel.variants])


def sources() -> str:
    """Markdown list: what each declaration rests on."""
    return "\n".join(
        f"- **{kernel.name}**{_known_as(kernel)}: {kernel.summary}. {kernel.source}" for kernel in _kernels()
    )


def _kernels() -> list[Kernel]:
    return [backend for backend in catalogue() if isinstance(backend, Kernel)]


def _known_as(kernel: Kernel) -> str:
    return f" (vLLM: {', '.join(kernel.known_as)})" if kernel.known_as else ""


def _conditions_row(kernel: Kernel) -> list[str]:
    known = (RunsOn, Activations, NoBias, ExpertParallel, Needs)
    conditions = kernel.conditions

    def briefs(kind: type[Condition], otherwise: str) -> str:
        return "; ".join(c.brief for c in conditions if isinstance(c, kind)) or otherwise

    extra = [c.brief for c in conditions if not isinstance(c, known)]
    return [
        f"`{kernel.name}`",
        briefs(RunsOn, "any"),
        briefs(Needs, "-"),
        briefs(Activations, "any"),
        briefs(NoBias, "yes"),
        briefs(ExpertParallel, "yes"),
        ", ".join(dict.fromkeys(v.activation_dtype for v in kernel.variants)),
        "; ".join(extra) or "-",
    ]


def _layout_row(kernel: Kernel, variant: Variant) -> list[str]:
    def named(*keys: str) -> str:
        return ", ".join(dict.fromkeys(f"`{variant.layouts[key]}`" for key in keys if key in variant.layouts))

    biases = named("w13.bias", "w2.bias")
    return [
        f"`{kernel.name}`",
        f"{variant.name}, {variant.activation_dtype}",
        "; ".join(condition.brief for condition in variant.conditions) or "always",
        f"{variant.align_hidden}, {variant.align_intermediate}",
        variant.rows,
        named("w13.weight", "w13.scale"),
        named("w2.weight", "w2.scale"),
        f"{biases} {variant.bias_dtype}" if biases else "-",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
