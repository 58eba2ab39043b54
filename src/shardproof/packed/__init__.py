"""PackedExperts: a rank's tensors with the identity of their byte order, as a value and as a file.

A packed folder holds `shardproof.json` (the manifest: key, plan, digests) and one
`rank-00006-of-00008.safetensors` a rank with flat tensors `layers.L.experts.{w13,w2}.{weight,scale,bias}` in kernel
order. Each file repeats plan and rank in its metadata, so that no tensor is ever without its layout.
"""

from shardproof.packed.experts import PackedExperts, PackedLayer
from shardproof.packed.file import BIAS_DTYPE, METADATA_KEY, header, held_digests, load, load_file, tensor_name
from shardproof.packed.key import FORMAT_VERSION, MANIFEST, differing, plan_key, refuse_stale
from shardproof.packed.manifest import rank_file, read_manifest, read_plan, write_manifest

__all__ = [
    "BIAS_DTYPE", "FORMAT_VERSION", "MANIFEST", "METADATA_KEY", "PackedExperts", "PackedLayer", "differing",
    "header", "held_digests", "load", "load_file", "plan_key", "rank_file", "read_manifest", "read_plan",
    "refuse_stale", "tensor_name", "write_manifest",
]  # fmt: skip
