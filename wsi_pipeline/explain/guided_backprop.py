"""Guided backpropagation: a gradient that passes each ReLU only where it raises the logit.

References
----------
.. [1] Springenberg, Dosovitskiy, Brox, Riedmiller, "Striving for Simplicity: The All Convolutional
   Net", ICLR workshop 2015, section 3.4.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.base import Method, Settings, Target
from wsi_pipeline.explain.saliency import saliency
from wsi_pipeline.models.base import PatchClassifier


class GuidedReLU(torch.autograd.Function):
    """A ReLU whose gradient passes where its input and the gradient itself are positive ([1])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(any shape) -> the same shape."""
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Zero what lowers the logit, and what the ReLU zeroed."""
        (x,) = ctx.saved_tensors
        passed: Tensor = gradients[0].clamp_min(0) * (x > 0)
        return passed


@contextlib.contextmanager
def guided(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Make gradients of a model guided ones, for a time.

    Raises
    ------
    ModelError
        If the model has a ReLU that is no module: its gradient would silently be the plain one.
    """
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    if (found := count_functional_relus(model, image)) > 0:
        raise ModelError(
            f"{type(model).__name__} calls {found} ReLUs as functions, which guided "
            "backpropagation cannot reach; make them nn.ReLU modules"
        )
    hooks = [relu.register_forward_hook(_guide) for relu in relus]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _guide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    guided_output: Tensor = GuidedReLU.apply(inputs[0])  # type: ignore[no-untyped-call]
    return guided_output


def count_functional_relus(model: nn.Module, image: Tensor) -> int:
    """Count the ReLUs of a forward pass that are not modules.

    Parameters
    ----------
    model : nn.Module
    image : (1, C, h, w)
    """
    by_modules: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: by_modules.append(module))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        counted = _CountReLUs()  # type: ignore[no-untyped-call]
        with torch.no_grad(), counted:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return counted.n - len(by_modules)


class _CountReLUs(TorchDispatchMode):
    """Counts what torch computes as a ReLU, called by whatever name."""

    n: int = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.n += func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
        return func(*args, **(kwargs or {}))


def guided_backprop(
    model: PatchClassifier, image: Tensor, *, target: Target, seed: int, config: Settings
) -> Tensor:
    """Return max_c |guided dy/dx_c|: (1, C, h, w) -> (h, w)."""
    with guided(model, image):
        return saliency(model, image, target=target, seed=seed, config=config)


METHOD = Method(guided_backprop, low=0)
