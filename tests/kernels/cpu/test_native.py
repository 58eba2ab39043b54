"""The C core without Python: under sanitizers, and for 64-bit ARM under an emulator."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[2] / "src" / "shardproof" / "kernels" / "cpu"
FLAGS = ("-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread", f"-I{CORE}")


def _compile(compiler, target, *flags):
    sources = [HERE / "driver.c", *sorted(CORE.glob("*.c"))]
    subprocess.run([compiler, *FLAGS, *flags, *sources, "-o", target, "-lm"], check=True, timeout=280)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kinds", "cases"), [("address,undefined", "60"), ("thread", "40")])
def test_sanitizers_find_nothing(tmp_path, kinds, cases):
    """Every variant that this CPU has, batched, single and from three threads at once."""
    program = tmp_path / "driver"
    _compile("gcc", program, "-O1", "-g", f"-fsanitize={kinds}", "-fno-sanitize-recover=all")
    _run(program, cases)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user",
)
def test_arm_gives_the_bits_of_this_machine(tmp_path):
    """NEON and dotprod against portable C on an emulated CPU, and that one against the host's portable C."""
    _compile("aarch64-linux-gnu-gcc", tmp_path / "arm", "-O2", "-static")
    _compile("gcc", tmp_path / "host", "-O2")
    arm, host = _run("qemu-aarch64", "-cpu", "max", tmp_path / "arm", "40"), _run(tmp_path / "host", "40")
    assert "portable neon dotprod " in arm
    old = _run("qemu-aarch64", "-cpu", "cortex-a53", tmp_path / "arm", "40")
    assert "dotprod(no)" in old
    digests = {next(line for line in text.splitlines() if "digest" in line) for text in (arm, host, old)}
    assert len(digests) == 1, f"{platform.machine()}: {digests}"
