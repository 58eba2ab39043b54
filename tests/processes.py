"""Real processes over gloo for tests."""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(world: int, work, folder: Path, *arguments) -> list[torch.Tensor]:
    """Run `work(rank, *arguments)` in `world` gloo processes; what each returned. Fails with the child's traceback."""
    context = mp.get_context("spawn")
    meeting = folder / f"meeting-{world}-{work.__name__}"
    children = [
        context.Process(target=_child, args=(rank, world, meeting, folder, work, arguments)) for rank in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert not errors, errors[0]
    assert not alive, "a process hangs"
    return [torch.load(folder / f"result-{rank}") for rank in range(world)]


def _child(rank, world, meeting, folder, work, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=60), world, rank)
        torch.save(work(rank, *arguments), folder / f"result-{rank}")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise
