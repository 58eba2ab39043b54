"""What the Triton kernels need of a GPU."""

from __future__ import annotations

import torch


def refuse_arch(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this GPU, or None."""
    if torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"found a GPU sm{major}{minor}, needed sm80 or later, or AMD's"


def holds_e4m3(device: torch.device) -> bool:
    """Whether the device's matrix unit reads OCP e4m3.

    gfx94x does not, nor does Triton convert e4m3 before sm89: both get the values in bfloat16.
    """
    if torch.version.hip is not None:
        return "gfx94" not in torch.cuda.get_device_properties(device).gcnArchName
    return torch.cuda.get_device_capability(device) >= (8, 9)
