"""Diagnose: says what is wrong with tensors that somebody else laid out, and which known mistake explains it.

from shardproof.diagnose import diagnose
print(diagnose("layer3.safetensors", "DeepSeek-V4-Pro", rank=6, tp=8, recipe=recipe))
"""

from __future__ import annotations

from shardproof.callable_module import make_callable
from shardproof.diagnose.api import diagnose, put_back
from shardproof.diagnose.numbers import Activations
from shardproof.diagnose.report import Diagnosis, Finding, LayerReport, Row

__all__ = ["Activations", "Diagnosis", "Finding", "LayerReport", "Row", "diagnose", "put_back"]

make_callable(__name__, diagnose)
