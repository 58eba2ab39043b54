"""`shardproof layouts ...`, and the page that it draws in a real browser."""

from __future__ import annotations

import html
import json
import shutil
import subprocess

import numpy as np
import pytest

from shardproof.cli import main
from shardproof.cli.layout_page import MOST_UNITS
from shardproof.layouts import find
from shardproof.layouts.registry import everything
from shardproof.layouts.shown.picture import example_shape, svg
from shardproof.layouts.shown.trace import canonical_shape, element_bits, elements_at, locate

EVERY = everything()
IDS = [f"{layout.name}@{layout.version}" for layout in EVERY]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(["layouts", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def data(run):
    def call(*arguments):
        code, out, _ = run(*arguments, "--json")
        assert code == 0
        return json.loads(out)

    return call


def test_list_names_every_layout_with_its_evidence(run, data):
    code, out, _ = run("list")
    assert code == 0
    for layout in EVERY:
        line = next(line for line in out.splitlines() if line.startswith(f"{layout.name}@{layout.version} "))
        assert ", ".join(layout.held_against) in line
    assert [entry["name"] for entry in data("list")["layouts"]] == [layout.name for layout in EVERY]


def test_show_says_all_that_is_declared(run, data):
    code, out, _ = run("show", "aiter.e8")
    assert code == 0
    for part in ("(m 2p 16r) (k 2q 4s) -> m k s r q p", "m to 256, k to 8, with 127", "n % 32", "e8m0_shuffle"):
        assert part in out
    assert "defect aiter.uninitialised_padding" in out
    shown = data("show", "marlin.scale_a8@1")
    assert (shown["add"], shown["highest"]) == (6, 248)
    assert shown["defects"][0]["name"] == "marlin.scale_249"


def test_address_and_at_speak_of_the_same_bits(data):
    found = data("address", "marlin.weight", "--shape", "2,64,64", "--element", "1,17,9")
    assert found["canonical"] == [{"byte": (64 + 17) * 32 + 4, "bits": [4, 7], "first": 0}]
    (run,) = found["kernel"]
    held = data("at", "marlin.weight", "--shape", "2,64,64", "--byte", run["byte"])["holds"]
    assert {"element": [1, 17, 9], "bits": run["bits"], "first": 0} in held


def test_an_element_of_a_bit_layout_has_several_places(run):
    code, out, _ = run("address", "triton_kernels.hopper_value", "--shape", "1,64,1024", "--element", "0,0,0")
    assert code == 0
    assert "kernel     byte 0, bits 6-7; byte 1, bit 0; byte 1, bit 7" in out


def test_at_tells_padding_from_content(run):
    code, out, _ = run("at", "aiter.e8", "--shape", "2,32,4", "--byte", "1500")
    assert code == 0
    assert "bits 0-7  padding (127)" in out


@pytest.mark.parametrize("layout", EVERY, ids=IDS)
def test_every_bit_of_the_buffer_is_traced_both_ways(layout):
    _, n, k = example_shape(layout)
    placed = layout.place((1, n, k))
    size = element_bits(layout, placed)
    bits = {}
    for row in {0, n // 2, n - 1}:
        for unit in range(0, k * 8 // size, max(1, k * 8 // size // 5)):
            canonical, kernel = locate(layout, placed, (0, row, unit))
            assert sum(r.high - r.low + 1 for r in kernel) == size
            assert canonical[0].byte == (row * k * 8 + unit * size) // 8
            for run in kernel:
                bits[run.byte, run.low] = ((0, row, unit), run.first)
    for (byte, low), (element, first) in bits.items():
        inside = [(x, r) for x, r in elements_at(layout, placed, byte) if r.low <= low <= r.high]
        ((found, run),) = inside
        assert (found, run.first + low - run.low) == (element, first)


def test_apply_and_its_inverse(run, tmp_path):
    canonical = np.random.default_rng(0).integers(0, 200, (2, 96, 5), dtype=np.uint8)
    np.save(tmp_path / "in.npy", canonical)
    name, param = "triton_kernels.hopper_scale", "--param=num_warps=4"
    code, _, _ = run("apply", name, tmp_path / "in.npy", "-o", tmp_path / "out.npy", param)
    assert code == 0
    kernel = np.load(tmp_path / "out.npy")
    assert (kernel == find(name)[0].place((2, 96, 5), {"num_warps": 4}).pack(canonical)).all()
    back = ["apply", name, tmp_path / "out.npy", "-o", tmp_path / "back.npy", param, "--inverse", "--shape", "2,96,5"]
    assert run(*back)[0] == 0
    assert (np.load(tmp_path / "back.npy") == canonical).all()


def test_foreign_padding_is_a_finding_and_nan_padding_is_refused(run, tmp_path):
    placed = find("cutlass.scale_128x4")[0].place((1, 96, 4))
    kernel = placed.pack(np.full((1, 96, 4), 120, dtype=np.uint8))
    back = ["apply", "cutlass.scale_128x4", tmp_path / "k.npy", "-o", tmp_path / "c.npy", "--inverse", "--shape=1,96,4"]
    for pad, code in ((127, 0), (0, 1), (255, 2)):
        kernel[placed.source_map() < 0] = pad
        np.save(tmp_path / "k.npy", kernel)
        got, _, err = run(*back)
        assert got == code
        assert ("[layout.padding]" in err) == (code > 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "aiter.w17"], "layout.unknown"),
        (["show", "aiter.w16@9"], "layout.newer"),
        (["address", "aiter.w16", "--shape=2,32,64", "--element=0,0,64"], "layout.range"),
        (["address", "aiter.w16", "--shape=2,32", "--element=0,0,0"], "layout.range"),
        (["address", "aiter.w16", "--shape=2,32,63", "--element=0,0,0"], "layout.shape"),
        (["address", "aiter.w16", "--shape=2,33,64", "--element=0,0,0"], "layout.shape"),
        (["at", "aiter.w16", "--shape=2,32,64", "--byte=2048"], "layout.range"),
        (["at", "aiter.w16", "--shape=2,32,64", "--byte=0", "--param=x=1"], "layout.parameter"),
        (["at", "aiter.w16", "--shape=2,32,64", "--byte=0", "--param=x"], "layout.parameter"),
        (["apply", "aiter.w16", "missing.npy", "-o", "x.npy"], "layout.file"),
        (["view", "raw.weight", "-o", "x.html", "--shape=1,4096,4096"], "layout.view"),
    ],
)
def test_refusals_end_with_2_and_a_code(run, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    got, _, err = run(*arguments)
    assert got == 2
    assert f"[{code}]" in err
    assert not list(tmp_path.iterdir())


def test_arrays_that_are_not_bytes_are_refused(run, tmp_path):
    np.save(tmp_path / "f.npy", np.zeros((1, 16, 32), dtype=np.float32))
    (tmp_path / "o.npy").write_bytes(b"not an array")
    np.save(tmp_path / "two.npy", np.zeros((16, 32), dtype=np.uint8))
    for name, code in (("f", "layout.file"), ("o", "layout.file"), ("two", "layout.shape")):
        got, _, err = run("apply", "aiter.w16", tmp_path / f"{name}.npy", "-o", tmp_path / "x.npy")
        assert (got, f"[{code}]" in err) == (2, True)


def test_the_page_loads_nothing(run, tmp_path):
    path = tmp_path / "view.html"
    assert run("view", "aiter.w16_gugu", "-o", path)[0] == 0
    text = path.read_text()
    for word in ("http:", "https:", "src=", "@import", "url(", "fetch(", "import("):
        assert word not in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in a browser")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("aiter.w16_gugu", None),
        ("marlin.weight", None),
        ("triton_kernels.hopper_value", "1,48,512"),
        ("cutlass.scale_128x4", None),
        ("raw.bias", None),
    ],
)
def test_a_browser_draws_it_and_says_where_a_unit_is(run, tmp_path, name, shape):
    path = tmp_path / "view.html"
    assert run("view", name, "-o", path, *(["--shape", shape] if shape else []))[0] == 0
    layout, _ = find(name)
    counts = tuple(int(s) for s in shape.split(",")) if shape else None
    placed = layout.place(canonical_shape(layout, counts) if counts else example_shape(layout))
    source = placed.source_map()
    for address in {int(np.flatnonzero(source >= 0)[29]), int(source.size - 1)}:
        text = dom(f"{path.as_uri()}#at={address}", tmp_path)
        assert f'data-drawn="{(source >= 0).sum()},{source.size}"' in text
        footer = text[text.index("<footer") :]
        e, n, _ = (int(x) for x in placed.element(address))
        if e < 0:
            assert f"padding ({placed.pad_value})" in footer
            continue
        at = {"byte": (1, 0), "nibble": (2, 0), "bit": (8, 0)}[layout.unit][0]
        assert f"e {e}, n {n}, " in footer
        assert f"<b>byte {int(source[address]) // at}" in footer
        assert f"<b>byte {address // at}" in footer


PROBE = """
<script>
const report = {};
const pixel = (grid, i) => {
  const s = grid.side * (devicePixelRatio || 1);
  const x = (i % grid.columns + .3) * s, y = (Math.floor(i / grid.columns) + .3) * s;
  return Array.from(grid.pen.getImageData(x, y, 1, 1).data).join();
};
tell = () => {};
for (const button of $("modes").children) {
  button.click();
  const colours = new Set();
  let same = true;
  for (let address = 0; address < map.length; address += 7) {
    const there = pixel(after, address);
    colours.add(there);
    if (map[address] >= 0 && pixel(before, map[address]) !== there) same = false;
  }
  report[button.textContent] = [same, colours.size];
}
document.body.dataset.report = JSON.stringify(report);
</script>
"""
HOVER = """
<script>
const box = after.canvas.getBoundingClientRect(), at = AT;
const clientX = box.left + (at % after.columns + .5) * after.side;
const clientY = box.top + (Math.floor(at / after.columns) + .5) * after.side;
after.canvas.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true }));
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in a browser")
@pytest.mark.parametrize("name", ["aiter.w16_gugu", "aiter.e8", "marlin.weight"])
def test_both_sides_show_a_unit_in_the_same_colour(run, tmp_path, name):
    path = tmp_path / "view.html"
    run("view", name, "-o", path)
    path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    text = dom(path.as_uri(), tmp_path)
    report = json.loads(html.unescape(text.split('data-report="')[1].split('"')[0]))
    assert set(report) == {"gate / up", "expert", "block", "row", "place", "padding"}
    for mode, (same, colours) in report.items():
        assert same, mode
        if mode not in {"padding", "block"}:
            assert colours > 2, mode
    assert report["padding"][1] == (2 if find(name)[0].place(example_shape(find(name)[0])).has_padding else 1)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in a browser")
def test_pointing_at_a_unit_tells_its_two_places(run, tmp_path):
    path = tmp_path / "view.html"
    run("view", "aiter.w16_gugu", "-o", path)
    path.write_text(path.read_text().replace("</body>", HOVER.replace("AT", "612") + "</body>"))
    layout, _ = find("aiter.w16_gugu")
    placed = layout.place(example_shape(layout))
    e, n, k = (int(x) for x in placed.element(612))
    footer = dom(path.as_uri(), tmp_path).split("<footer")[1]
    assert f"<b>e {e}, n {n}, k {2 * k} and {2 * k + 1}</b>" in footer
    assert f"<b>up, row {n - 16}</b>" in footer
    assert f"<b>byte {int(placed.source_map()[612])}</b>" in footer
    assert "<b>byte 612</b>" in footer


def dom(address, folder):
    """The page's document after its script has run."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_pictures_are_drawn_for_every_layout_and_stay_small():
    assert MOST_UNITS >= 1 << 16
    for layout in EVERY:
        _, rows, columns = example_shape(layout)
        placed = layout.place((1, rows, columns))
        drawing = svg(layout, rows, columns)
        assert drawing.startswith("<svg ")
        assert (drawing.count("#d9d9d9") > 0) == placed.has_padding
