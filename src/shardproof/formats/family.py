"""What a model's config says of its MoE layers, apart from how their weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardproof.checkpoint import config_value
from shardproof.errors import FormatError
from shardproof.experts import Activation

UNKNOWN = "unknown"
"""The family of a model that no config names: its activation is a guess."""

_HUGE = 1e30


@dataclass(frozen=True, slots=True)
class Family:
    """The arithmetic of a model family and the sizes its config names (None where it does not)."""

    name: str
    activation: Activation
    weight_before_w2: bool
    top_k: int
    experts: int | None
    hidden: int | None
    intermediate: int | None
    guessed: tuple[str, ...] = ()
    """What the config does not say and tensors do not show, as one sentence or none."""


def read_family(config: dict[str, Any]) -> Family:
    """Read family, activation and sizes from a config.json.

    Arithmetic: DeepSeek-V4 inference/model.py (silu with clamp, routing weight before w2); gpt-oss and MiniMax-M3
    (swiglu_oai); Kimi-K3 (SiTU); everything else silu. Sizes that the config leaves out follow from tensor shapes.
    Raises FormatError `format.config` for values that cannot be.
    """
    name = str(config_value(config, "model_type") or UNKNOWN)
    experts = _integer(config, "n_routed_experts", "num_local_experts", "num_experts")
    said_top_k = _integer(config, "num_experts_per_tok", "num_experts_per_token", "experts_per_token")
    top_k = said_top_k or 1
    if experts is not None and top_k > experts:
        raise _bad_value(("num_experts_per_tok",), top_k, f"at most the number of experts, {experts}")
    nested = config.get("text_config")
    if isinstance(nested, dict) and nested.get("model_type"):
        name = str(nested["model_type"])
    activation = _activation(name, config)
    return Family(
        name=name,
        activation=activation,
        weight_before_w2=name.startswith("deepseek_v4"),
        top_k=top_k,
        experts=experts,
        hidden=_integer(config, "routed_expert_hidden_size", "hidden_size"),
        intermediate=_integer(config, "moe_intermediate_size", "intermediate_size"),
        guessed=_guessed(config, name, activation, said_top_k),
    )


def _guessed(config: dict[str, Any], name: str, activation: Activation, top_k: int | None) -> tuple[str, ...]:
    guesses = [] if top_k else ["top-k 1"]
    if name == UNKNOWN:
        guesses += [f"activation {activation}", "the routing weight after w2"]
    why = "config.json does not say" if config else "there is no config.json"
    return (f"guessed, for {why}: {', '.join(guesses)}; packing does not need it, running the layer does",) * bool(
        guesses
    )


def _activation(name: str, config: dict[str, Any]) -> Activation:
    limit = _number(config, "swiglu_limit")
    if name == "gpt_oss" or name.startswith("minimax_m3"):
        alpha = _number(config, "swiglu_alpha") or 1.702
        return Activation("swiglu_oai", limit=7.0 if limit is None else limit, alpha=alpha)
    if name.startswith("kimi_k3"):
        return Activation("situ")
    return Activation("silu", limit=limit or None)


def _integer(config: dict[str, Any], *names: str) -> int | None:
    value = config_value(config, *names)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise _bad_value(names, value, "a whole number from 1 up")
    return int(value)


def _number(config: dict[str, Any], name: str) -> float | None:
    value = config_value(config, name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < _HUGE:
        raise _bad_value((name,), value, "a number from 0 up")
    return float(value)


def _bad_value(names: tuple[str, ...], found: object, needed: str) -> FormatError:
    return FormatError(
        "format.config", f"config.json has a strange value for {' or '.join(names)}", found=ascii(found)[:80],
        needed=needed, next_step="correct config.json, or download it again",
    )  # fmt: skip
