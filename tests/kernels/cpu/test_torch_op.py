"""The torch operator: same bits as the class, fake tensors, torch.compile's view of it, torch's own checks."""

import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shardproof.errors import KernelError
from shardproof.experts import Activation
from shardproof.kernels.cpu.torch_op import cpu_moe
from tests.kernels.cpu.exact import random_case
from tests.kernels.cpu.packing import pack_w2, pack_w13


def _arguments(case, precision="int8"):
    def tensors(*arrays):
        return tuple(None if a is None else torch.from_numpy(a) for a in arrays)

    e, _, i = case.sizes
    act = case.activation
    return (
        *tensors(case.x, case.ids, case.weights),
        *tensors(*pack_w13(case.w13, case.s13), case.b13, *pack_w2(case.w2, case.s2), case.b2, None),
        e, i, act.kind, act.limit, act.alpha, act.beta, act.linear_beta, case.before, precision,
    )  # fmt: skip


@pytest.fixture
def case(rng):
    return random_case(rng, 3, 64, 96, 7, 2, bias=True, activation=Activation("swiglu_oai", limit=7.0), before=True)


def test_same_bits_as_the_class(case, precision):
    got = cpu_moe(*_arguments(case, precision))
    assert torch.equal(got, torch.from_numpy(case.run(precision=precision)))
    assert torch.equal(torch.ops.shardproof.cpu_moe(*_arguments(case, precision)), got)


def test_torch_finds_the_registration_sound(case):
    """Schema, fake tensor against real result, and dispatch through AOT with dynamic shapes."""
    torch.library.opcheck(
        cpu_moe, _arguments(case), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )


def test_fake_tensors_run_nothing(case):
    arguments = _arguments(case)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        out = cpu_moe(*fake)
    assert out.shape == (7, 64)
    assert out.dtype == torch.float32


def test_nothing_is_kept(case):
    arguments = _arguments(case)
    weight = weakref.ref(arguments[3])
    cpu_moe(*arguments)
    del arguments
    gc.collect()
    assert weight() is None


def test_fake_tensors_check_dimensions(case):
    arguments = list(_arguments(case))
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(KernelError, match=r"kernel\.shape"),
    ):
        cpu_moe(mode.from_tensor(arguments[0][0]), *arguments[1:])


def test_errors_keep_their_code(case):
    arguments = list(_arguments(case))
    arguments[-1] = "int4"
    with pytest.raises(KernelError, match=r"kernel\.precision"):
        cpu_moe(*arguments)
    arguments[-1] = "int8"
    arguments[0] = arguments[0].double()
    with pytest.raises(KernelError, match=r"kernel\.dtype"):
        cpu_moe(*arguments)
