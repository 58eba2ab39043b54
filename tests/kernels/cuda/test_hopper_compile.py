"""The Hopper kernels without a GPU: builds compile for sm_90a; memory, parameters and choice agree."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cuda.bindings.nvrtc")

from shardproof.kernels.cuda import builds, launch, route  # noqa: E402
from shardproof.kernels.cuda import compile as kernel_compile  # noqa: E402

MOST_SHARED = 232448  # bytes a block may have on sm_90


def checked(monkeypatch: pytest.MonkeyPatch, build: builds.Build, extra: str) -> int:
    text = kernel_compile.source_text("many_params.cuh" if build.many else "route.cu", build) + extra
    monkeypatch.setattr(kernel_compile, "source_text", lambda *_: text)
    return len(kernel_compile.machine_code("route.cu", build))


@pytest.mark.parametrize("build", builds.BUILDS.values(), ids=lambda b: b.name)
def test_parameters_and_shared_memory_agree(build, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path))
    assert build.shared_bytes <= MOST_SHARED
    end = "Many::END" if build.many else "Shared::END_SMALL"
    extra = (
        f'static_assert(sizeof(Params) == {ctypes.sizeof(launch.Args)}, "");\n'
        f'static_assert(sizeof(Gemm) == {ctypes.sizeof(launch.GemmArgs)}, "");\n'
        f'static_assert(sizeof(Boxes) == {ctypes.sizeof(launch.Boxes)}, "");\n'
        f'static_assert(BOXES == {int(build.boxes)}, "");\n'
        f'static_assert({end} <= {build.shared_bytes}, "");\n'
        f'static_assert({end} + 64 > {build.shared_bytes}, "");\n'
    )
    assert checked(monkeypatch, build, extra)


def test_stages_end_within_what_lies_behind_the_multipliers() -> None:
    from shardproof.kernels.cuda.pack import BEHIND, derive, pack_scale, pack_weight

    weight, scale = torch.zeros(1, 64, 96, dtype=torch.uint8), torch.full((1, 64, 6), 120, dtype=torch.uint8)
    multiplier = derive(pack_weight(weight, "w2"), pack_scale(scale, "w2"), 1, 64, 192).multiplier
    behind = torch.as_strided(multiplier, (BEHIND,), (1,), multiplier.numel())
    assert set(behind.tolist()) == {253}
    assert 128 * (max(b.chunks for b in builds.BUILDS.values() if b.boxes) - 1) <= BEHIND


def test_a_wrong_size_does_not_compile(monkeypatch, tmp_path) -> None:
    from shardproof.errors import BackendError

    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path))
    with pytest.raises(BackendError, match="does not compile"):
        checked(monkeypatch, builds.SMALL, 'static_assert(sizeof(Params) == 1, "");\n')


@pytest.mark.slow
@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize("build", [builds.SMALL, builds.WIDE], ids=lambda b: b.name)
def test_layer_kernel_compiles_and_is_kept(build, activation, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SHARDPROOF_CACHE", str(tmp_path))
    build = replace(build, activation=activation)
    code = kernel_compile.machine_code("moe.cu", build)
    assert b"shardproof_moe" in code
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [code]


@pytest.mark.parametrize("build", [b for b in builds.BUILDS.values() if b.many], ids=lambda b: b.name)
def test_registers_change_hands_within_what_a_block_was_given(build) -> None:
    # A block starts with the most registers a thread (in eights) that 65,536 allow, and waits for ever for more.
    given = 65536 // build.threads // 8 * 8 * build.threads
    assert build.wgs * 128 * build.consumer_regs + 128 * build.producer_regs <= given


@pytest.mark.slow
@pytest.mark.parametrize("build", builds.BUILDS.values(), ids=lambda b: b.name)
def test_products_overlap(build) -> None:
    # ptxas may decide that each product of the matrix unit waits for the one before, and says so in its report only.
    report = kernel_compile.assembler_report("many.cu" if build.many else "moe.cu", build)
    assert "registers" in report
    assert "serialized" not in report


def test_a_compiler_that_says_nothing_leaves_the_rest_alone() -> None:
    # NVRTC writes its log, one byte of end, into bytes of ours: not into the b" " that all of Python shares.
    code, log = kernel_compile._nvrtc('extern "C" __global__ void nothing() {}', ["-arch=sm_90a"])
    assert (code[:4], log) == (b"\x7fELF", "")
    assert [list(chr(byte).encode()) for byte in (0, 32)] == [[0], [32]]


@pytest.mark.slow
def test_the_report_tells_products_that_do_not_overlap() -> None:
    narrow = replace(builds.MANY48_8, widths=(16, 24))  # of two steps of 16 tokens it mixes up the sums
    assert "serialized" in kernel_compile.assembler_report("many.cu", narrow)


def test_tokens_that_registers_cannot_hold_take_turns() -> None:
    """The widths of `many224_8` are twice those of its products; those of `many192_8` are its products' own."""
    assert [builds.BUILDS[n].pieces for n in ("many192_8", "many224_8", "many240")] == [1, 2, 1]
    text = kernel_compile.mma_text(builds.BUILDS["many224_8"])
    assert [f"Mma<{n}>" in text for n in (104, 112, 208, 224)] == [True, True, False, False]


def test_choice_follows_the_table() -> None:
    assert builds.choose(0.02, "w4a16").name == "small"
    assert builds.choose(1e9, "w4a8 exact").name == "many192_8"
    assert builds.choose(24, "w4a8").name == "many40"
    assert [builds.choose(n, "w4a16").name for n in (24, 96, 192)] == ["many40", "many112", "many240"]
    assert [builds.choose(n, "w4a8 exact").name for n in (0.02, 1, 12, 24, 192)] == [
        "small",
        "few16_8",
        "few24_8",
        "many48_8",
        "many224_8",
    ]
    for key, rows in builds.table("*").items():
        shape = next((s for s in ("few", "short") if key.endswith(s)), "")
        assert rows == sorted(rows)
        for top, name in rows:
            assert builds.BUILDS[name].fp8 <= ("exact" in key)
            assert builds.choose(top, key.removesuffix(shape).strip(), shape=shape).name == name
    assert builds.choose(1e9, "w4a16", shape="few").name == "many240"  # goes on in the rows of every shape
    assert builds.choose(96, "w4a8").name == "many112"  # and in those of the same products


def test_shape_classes_have_rows_of_their_own() -> None:
    assert builds.shape_class(256, 256) == "short"
    assert builds.shape_class(32, 2048) == "few"
    assert builds.choose(0.02, "w4a16", shape="short").name == "short"
    assert builds.choose(3, "w4a16", shape="few").name == "small"
    assert builds.choose(3, "w4a16").name == "wide"


def test_a_file_extends_the_table(monkeypatch, tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"My GPU": {"w4a16": [[null, "mid"]]}}')
    monkeypatch.setenv("SHARDPROOF_TUNING", str(path))
    assert builds.choose(0.01, "w4a16", "My GPU").name == "mid"
    assert builds.choose(0.01, "w4a16", "Another GPU").name == "small"
    assert builds.choose(0.01, "w4a8", "My GPU").name == "small"
    assert builds.choose(1e9, "w4a8", "My GPU").name == "mid"
    assert builds.choose(1e9, "w4a8 exact", "My GPU").name == "many192_8"


def test_a_slice_of_a_few_processors_rounds_too(monkeypatch) -> None:
    grids = []
    monkeypatch.setattr(route.launch, "function", lambda entry, *_: entry)
    monkeypatch.setattr(route.launch, "launch", lambda _, grid, *a, **k: grids.append(grid))
    x = torch.zeros(4096, 4096, dtype=torch.bfloat16)
    for processors in (1, 7, 14, 16, 132):
        layer = SimpleNamespace(processors=processors, experts=256, device=torch.device("cpu"))
        route.run(layer, builds.MANY192_8, launch.Args(tokens=4096, top_k=6), x, None, 0)
        route.run(layer, builds.MID8, launch.Args(tokens=16, top_k=6), x[:16], None, 0)
    assert grids == [16, 2, 16, 7, 16, 9, 16, 9, 128, 9]  # sorters, and whole clusters that round


@pytest.mark.parametrize(
    ("tokens", "build", "cluster", "grid"),
    [(16, builds.WIDE, 1, 1), (16, builds.MID8, 1, 9), (400, builds.MANY112, 8, 8), (4096, builds.MANY192_8, 8, 128)],
    ids=lambda v: getattr(v, "name", v),
)
def test_sorting_and_rounding_fill_whole_clusters(tokens, build, cluster, grid, monkeypatch) -> None:
    launched = []
    monkeypatch.setattr(route.launch, "function", lambda entry, *_: entry)
    monkeypatch.setattr(route.launch, "launch", lambda *a, cluster: launched.append((*a, cluster)))
    layer = SimpleNamespace(processors=132, experts=256, device=torch.device("cpu"))
    args = launch.Args(tokens=tokens, top_k=6)
    route.run(layer, build, args, torch.zeros(tokens, 4096, dtype=torch.bfloat16), None, 0)
    entry, blocks, threads, shared, _, overlap, *_, of = launched[0]
    assert (entry, blocks, threads, overlap, of) == ("route.cu", grid, 1024, False, cluster)
    assert blocks % of == 0
    assert shared >= 4 * (4 * 256 + 3 * 32)
