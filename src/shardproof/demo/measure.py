"""What is measured of a language model: perplexity on a text, and what it says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from shardproof.demo.subject import Subject


@dataclass(frozen=True, slots=True)
class Speech:
    """Perplexity on the subject's text, and the greedy continuation of its prompt."""

    perplexity: float
    tokens: tuple[int, ...]
    text: str
    seconds: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "perplexity": self.perplexity, "text": self.text, "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 2),
        }  # fmt: skip


def listen(model: Any, subject: Subject, new_tokens: int) -> Speech:
    """Measure a model: exp of the mean cross-entropy per token, and `new_tokens` greedy tokens (fewer at the end).

    Tokens per second are those of the greedy answer, its prompt included in the time.
    """
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        logits = model(input_ids=subject.text, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, subject.text[0, 1:])
        asked = time.perf_counter()
        said = model.generate(
            input_ids=subject.prompt, attention_mask=torch.ones_like(subject.prompt), max_new_tokens=new_tokens,
            do_sample=False,
        )[0, subject.prompt.shape[1] :]  # fmt: skip
    done = time.perf_counter()
    text, tokens = subject.decode(said), tuple(said.tolist())
    return Speech(float(loss.exp()), tokens, text, done - start, len(tokens) / (done - asked))
