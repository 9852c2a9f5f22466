"""`train.compile`: numbers stay the same but for rounding; a CPU without a compiler is told so."""

import shutil

import pytest
import torch

from tests.systems.common import PROGRESS, build, example, gradients
from tuwen.errors import UserError
from tuwen.training.start import compile_blocks

CPU = torch.device("cpu")


def test_a_cpu_without_a_compiler_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"train\.compile: a CPU needs a C\+\+ compiler"):
        compile_blocks(build("clip"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "r2d2"])
def test_compiled_blocks_give_the_same_losses_and_gradients(name):
    """About three minutes on one core, nearly all of it compiling."""
    plain, compiled = build(name), build(name)
    compile_blocks(compiled, CPU)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    losses, again = (system(example(), PROGRESS) for system in (plain, compiled))
    for term, value in losses.terms.items():
        torch.testing.assert_close(again.terms[term], value, rtol=1e-5, atol=1e-5)
    theirs, ours = gradients(losses.total, plain), gradients(again.total, compiled)
    for key, want in theirs.items():
        if want is None:
            assert ours[key] is None, key
        else:
            torch.testing.assert_close(ours[key], want, rtol=1e-3, atol=1e-5, msg=key)
