"""Models of other programs as patch classifiers: TorchScript, ``torch.export``, state dicts.

Nothing is unpickled: state dicts are read with ``weights_only``, a ``torch.export`` archive with
pickled parts is refused. Both kinds of programs still run what their author wrote.
"""

import inspect
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiling.contracts import CLASS_NAMES
from wsi_pipeline.config.model_files import ExternalModel, choose_positive
from wsi_pipeline.config.zoo_config import Normalize, Resize, Step, ToTensor
from wsi_pipeline.errors import CheckpointError, ModelError
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.plugins import load_plugin
from wsi_pipeline.models.pretrained import read_state_dict
from wsi_pipeline.models.state_dicts import fit_state_dict
from wsi_pipeline.models.torchvision_nets import ARCHITECTURES, count_classes

_IMAGENET_CLASSES = 1000  # where a state dict has no last layer, which is then reported
_DRY_SIDE = 224  # px of the image that a network without a description is tried on


class ExternalClassifier(PatchClassifier):
    """A network with an output for each class, as a classifier with one score.

    Parameters
    ----------
    network : nn.Module or callable
        From (B, 3, h, w) to (B, C) logits, or (B,) of a single class.
    class_names : sequence of str
        In the order of the outputs.
    positive : sequence of int
        Outputs whose probabilities add up to the score.
    transform : tuple of Step
        Applied to images before the network.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        class_names: Sequence[str],
        positive: Sequence[int],
        transform: tuple[Step, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names)
        self.positive = tuple(positive)
        self.transform = transform
        self.options = {}

    def class_logits(self, x: Tensor) -> Tensor:
        """Return the network's outputs: (B, 3, H, W) in [0, 1] -> (B, C) float32.

        Raises
        ------
        ModelError
            If the network does not return one number for each class.
        """
        found = _find_logits(self.network(transform_images(self.prepare(x), self.transform)))
        if found is not None and found.ndim == 1:
            found = found[:, None]
        wanted = (len(x), len(self.class_names))
        if found is None or tuple(found.shape) != wanted:
            got = "no tensor" if found is None else f"{tuple(found.shape)[1:]} numbers"
            raise ModelError(
                f"the network returns {got} for an image, but {wanted[1]} classes are described "
                f"({', '.join(self.class_names)}); correct num_classes and class_names in its JSON"
            )
        return found.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of the positive classes together: (B, 3, H, W) in [0, 1] -> (B,)."""
        return self.all_logits(x)[:, 0]

    def all_logits(self, x: Tensor) -> Tensor:
        """Return the logit of the positive classes together, then that of each class.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]

        Returns
        -------
        logits : (B, 1 + C)
            The sigmoid of a class's logit is its softmax probability, and of the first one the
            sum of the positive ones'.
        """
        logits = self.class_logits(x)
        if logits.shape[1] == 1:
            return logits.expand(-1, 2)
        columns = [_log_odds(logits, self.positive)]
        columns += [_log_odds(logits, (number,)) for number in range(logits.shape[1])]
        return torch.stack(columns, dim=1)


class AllClasses(nn.Module):
    """An `ExternalClassifier` that returns the logits of all classes, for prediction."""

    def __init__(self, classifier: ExternalClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1 + C), as `ExternalClassifier.all_logits`."""
        return self.classifier.all_logits(x)


def with_classes(model: nn.Module) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Prepare a model for scores of all its classes.

    Returns
    -------
    network : nn.Module
        (B, 3, H, W) in [0, 1] -> (B, 1 + C) logits; of other models (B,).
    classes, positive : tuples of str
        Names of all C classes, and of those that add up to the score; empty of other models.
    """
    if not isinstance(model, ExternalClassifier):
        return model, (), ()
    classes = model.class_names
    return AllClasses(model), classes, tuple(classes[number] for number in model.positive)


def _log_odds(logits: Tensor, chosen: Sequence[int]) -> Tensor:
    """Return log(p / (1 - p)) of the softmax probability p of some classes, (B,)."""
    others = [number for number in range(logits.shape[1]) if number not in chosen]
    return logits[:, list(chosen)].logsumexp(dim=1) - logits[:, others].logsumexp(dim=1)


def _find_logits(output: Any) -> Tensor | None:
    """Find the logits in what a network returns: a tensor, or the first of a tuple."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


# ------------------------------------------------------------ images


def transform_images(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Apply the steps of a description.

    Before ``ToTensor`` images are 8-bit: a resized image is rounded to 1/255 after each direction,
    horizontal first, as Pillow does it.

    Parameters
    ----------
    x : (B, 3, H, W) float in [0, 1]
    steps : sequence of Step

    Returns
    -------
    x : (B, 3, h, w) float
    """
    eight_bit = True
    for step in steps:
        if isinstance(step, ToTensor):
            eight_bit = False
        elif isinstance(step, Resize):
            x = _resize(x, step, eight_bit=eight_bit)
        elif isinstance(step, Normalize):
            mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (step.mean, step.std))
            x = (x - mean) / std
    return x


def _resize(x: Tensor, step: Resize, *, eight_bit: bool) -> Tensor:
    height, width = x.shape[-2:]
    if isinstance(step.size, tuple):
        size = step.size
    else:  # of the shorter side
        short = min(height, width)
        size = (step.size * height // short, step.size * width // short)
    if size == (height, width):
        return x
    if step.interpolation == "nearest":
        return F.interpolate(x, size, mode="nearest-exact")
    for target in ((height, size[1]), size):
        x = F.interpolate(x, target, mode=step.interpolation, antialias=True, align_corners=False)
        if eight_bit:
            x = (x * 255).round_().clamp_(0, 255) / 255
    return x


# ------------------------------------------------------------ networks


def load_external(model: ExternalModel) -> ExternalClassifier:
    """Load a model of another program, on the CPU, in evaluation mode, and try it on one image.

    Raises
    ------
    CheckpointError
        If the file is damaged, has pickled parts, or is made for something else.
    ModelError
        If its weights do not fit the architecture, or its outputs not the description.
    ConfigError
        If a positive class is not known.
    """
    described = model.description
    network: Callable[[Tensor], Any]
    names: tuple[str, ...] = ()
    if model.kind == "torchscript":
        network = _load_torchscript(model)
    elif model.kind == "export":
        network = _load_export(model)
    else:
        network, names = _load_state_dict(model)
    names = described.class_names if described else names
    positive = choose_positive(names, model.positive, model.path)
    own = described is None and isinstance(network, PatchClassifier)  # it normalises by itself
    transform = (ToTensor(),) if own else model.transform
    found = ExternalClassifier(network, names, positive, transform).eval()
    side = described.patch_px if described else _DRY_SIDE
    try:
        with torch.inference_mode():
            found(torch.zeros(1, 3, side, side))
    except ModelError as error:
        raise ModelError(f"{model.path}: {error}") from error
    except Exception as error:  # of the network's own code
        raise ModelError(
            f"{model.path}: its network fails on an image of {side} px ({_first_line(error)}); "
            "check patch_size_pixels and transform in its JSON, or save the model again"
        ) from error
    return found


class _Graph:
    """A network that is a graph made elsewhere.

    It is no `nn.Module`, so its weights keep their layout when a model is placed: a graph may hold
    views that are only possible in the layout that it was made in. It follows its input to a
    device.
    """

    def __init__(self, module: nn.Module, batch: int | None = None) -> None:
        self.module = module
        self.batch = batch  # images at once, where the graph is fixed to a number
        self._device = torch.device("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        if x.device != self._device:
            self.module.to(x.device)
            self._device = x.device
        x = x.contiguous()
        if self.batch is None:
            return self._run(x)
        parts = [self._run_padded(part, self.batch) for part in x.split(self.batch)]
        return torch.cat(parts)

    def _run(self, x: Tensor) -> Tensor:
        # Without the optimiser, which changes the code, and so the bits, after the first batches.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found = _find_logits(self.module(x))
        if found is None:
            raise ModelError("the network returns no tensor of logits")
        return found

    def _run_padded(self, x: Tensor, batch: int) -> Tensor:
        missing = batch - len(x)
        padded = torch.cat([x, x.new_zeros((missing, *x.shape[1:]))]) if missing else x
        return self._run(padded)[: len(x)]


def _load_torchscript(model: ExternalModel) -> _Graph:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, files are not
            module = torch.jit.load(str(model.path), map_location="cpu")
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{model.path}: TorchScript that torch {torch.__version__} cannot load "
            f"({_first_line(error)}); copy the file again, or save the model again"
        ) from error
    module.eval()
    return _Graph(module)


def _load_export(model: ExternalModel) -> _Graph:
    _refuse_pickles(model)
    try:
        program = torch.export.load(model.path)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{model.path}: a torch.export file that torch {torch.__version__} cannot load "
            f"({_first_line(error)}); copy the file again, or export the model again"
        ) from error
    inputs = program.graph_signature.user_inputs
    shapes = [n.meta["val"].shape for n in program.graph.nodes if n.name in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise CheckpointError(
            f"{model.path}: the exported program takes {len(shapes)} inputs; export a network that "
            "takes one batch of images (B, 3, H, W)"
        )
    first = shapes[0][0]
    return _Graph(program.module(), first if isinstance(first, int) else None)


def _refuse_pickles(model: ExternalModel) -> None:
    """Refuse an archive with parts that torch would unpickle, or with compiled code."""
    reason = ""
    try:
        with zipfile.ZipFile(model.path) as archive:
            for whole in archive.namelist():
                name = whole.partition("/")[2]
                if name.startswith("data/aotinductor"):
                    reason = "compiled code"
                elif name.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(whole)), weights_only=True)
                elif name.endswith("_config.json") and name.startswith("data/"):
                    entries = json.loads(archive.read(whole))["config"].values()
                    kinds = ("custom_obj", "opaque_obj")
                    if any(e["use_pickle"] or e["path_name"].startswith(kinds) for e in entries):
                        reason = "pickled objects"
                elif name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
                    reason = "pickled weights of an earlier version of torch"
    except Exception as error:  # of the archive, or of what weights_only does not allow
        reason = f"parts that cannot be read without running them ({_first_line(error)})"
    if reason:
        raise CheckpointError(
            f"{model.path}: a torch.export file with {reason}, which is not loaded; export the "
            "network again, with plain tensors only"
        )


def _load_state_dict(model: ExternalModel) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a state dict's network; also return names for its classes."""
    name, described = model.architecture or "", model.description
    stored = read_state_dict(model.path)
    count = len(described.class_names) if described else None
    if is_known := name in ARCHITECTURES:
        count = count or count_classes(name, stored) or _IMAGENET_CLASSES
        with torch.device("meta"):
            network = ARCHITECTURES[name](count)
    else:
        network = _build_plugin(name, count, model)
        count = count or 1
    remedy = "give another --architecture, or weights with torchvision's names"
    if described:
        remedy += f"; {count} classes are described in the JSON next to it"
    wanted = network.state_dict()
    ready = fit_state_dict(model.path, stored, wanted, architecture=name, remedy=remedy)
    network.load_state_dict(ready, assign=is_known)
    named = CLASS_NAMES[1:] if count == 1 else tuple(f"class_{i}" for i in range(count))
    return network.eval(), named


def _build_plugin(name: str, count: int | None, model: ExternalModel) -> nn.Module:
    """Build the network of an installed package, with the number of classes where it takes one."""
    kind = load_plugin(name, known=sorted(ARCHITECTURES))
    takes = "num_classes" in inspect.signature(kind).parameters
    if takes and count is None:
        raise CheckpointError(
            f"{model.path}: the number of classes of {name} is not known; put WSInfer's "
            "config.json next to the file (docs/other_models.md)"
        )
    network = kind(num_classes=count) if takes else kind()
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"the entry point {name!r} makes a {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def _first_line(error: BaseException) -> str:
    """Shorten an error of torch; TorchScript's reason follows a traceback of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("RuntimeError: ")]
    return (reasons or lines or [type(error).__name__])[0][:200]
