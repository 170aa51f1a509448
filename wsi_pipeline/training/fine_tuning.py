"""The course of a fine-tuning: frozen blocks, rates by block, warm-up, the head first.

References
----------
.. [1] Yosinski, Clune, Bengio, Lipson, "How transferable are features in deep neural networks?",
   NeurIPS 2014: the first blocks copied and frozen, or fine-tuned.
.. [2] Kumar, Raghunathan, Jones, Ma, Liang, "Fine-Tuning can Distort Pretrained Features and
   Underperform Out-of-Distribution", ICLR 2022: first the head alone, then all (LP-FT).
.. [3] Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018:
   discriminative rates, lower towards the input.
.. [4] Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, 2.2:
   gradual warm-up of the learning rate.
.. [5] Liu, Jiang, He, Chen, Liu, Gao, Han, "On the Variance of the Adaptive Learning Rate and
   Beyond", ICLR 2020: why adaptive optimisers need a warm-up; its Adam-2k updates the second
   moments alone during the first 2000 steps.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from wsi_pipeline.config.settings import TrainConfig, fine_tuning_settings
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models import MODELS, BlockClassifier, PatchClassifier, find_architecture
from wsi_pipeline.training.course import Course
from wsi_pipeline.training.frozen_maps import FrozenMaps
from wsi_pipeline.training.history import EpochRecord
from wsi_pipeline.training.recipe import build_optimizer, build_scheduler


class FineTuningCourse(Course):
    """One optimiser with a group of parameters for the head and each block that is trained.

    Rates are a function of the step and the validation alone, so a resumed training has the same.
    """

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse settings that have no effect or contradict each other."""
        super().check(config)
        if problem := _find_problem(config):
            raise ConfigError(f"{config.model.name}: {problem}")

    def __init__(self, config: TrainConfig, model: PatchClassifier) -> None:
        self.check(config)
        self.config = config
        self.model = model
        self._n_frozen = 0  # blocks frozen in this epoch
        self._maps: FrozenMaps | None = None
        self._images_recur = can_recur(config)
        blocks = list(model.blocks()) if isinstance(model, BlockClassifier) else []
        self._blocks = blocks
        self._always_frozen = len(blocks) if config.freeze == "all" else config.freeze or 0
        for block in blocks[: self._always_frozen]:
            block.requires_grad_(False)
        groups, self._is_head = self._group_parameters()
        self.optimizer = build_optimizer(config, model, groups)
        self._scheduler = build_scheduler(config, self.optimizer)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.begin(1)

    def _group_parameters(self) -> tuple[list[dict[str, Any]], list[bool]]:
        """Return the trained parameters with their rates, the head first, then the last block."""
        config, blocks = self.config, self._blocks
        in_blocks = {id(p) for block in blocks for p in block.parameters()}
        head = [p for p in self.model.parameters() if id(p) not in in_blocks]
        groups: list[dict[str, Any]] = [{"params": head, "lr": config.head_lr or config.lr}]
        for depth, block in enumerate(reversed(blocks[self._always_frozen :])):
            rate = config.lr * config.layer_decay**depth
            groups.append({"params": list(block.parameters()), "lr": rate})
        return groups, [number == 0 for number in range(len(groups))]

    def begin(self, epoch: int) -> None:
        """Freeze the blocks that the epoch does not train."""
        head_alone = epoch <= self.config.head_epochs
        n_frozen = len(self._blocks) if head_alone else self._always_frozen
        for block in self._blocks[self._always_frozen :]:
            block.requires_grad_(not head_alone)
        if n_frozen != self._n_frozen or self._maps is None:
            self._n_frozen = n_frozen
            self._maps = self._keep_maps(n_frozen)
        self._set_rates([1.0] * len(self._rates))

    def _keep_maps(self, n_frozen: int) -> FrozenMaps | None:
        if not n_frozen or not isinstance(self.model, BlockClassifier):
            return None
        return FrozenMaps(self.model, n_frozen)

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Set the rates of a step: 0 while moments accumulate, then rising to their value."""
        start = self.config.head_epochs * steps_per_epoch  # of the blocks
        self._set_rates([self._warm_up(step - start * (not head)) for head in self._is_head])

    def _warm_up(self, step: int) -> float:
        """Return the share of its rate at which a part learns, `step` steps after its first."""
        step -= self.config.moment_steps
        if step < 0:
            return 0.0
        return min(1.0, (step + 1) / (self.config.warmup_steps + 1))

    def _set_rates(self, shares: list[float]) -> None:
        groups = self.optimizer.param_groups
        for group, rate, share in zip(groups, self._rates, shares, strict=True):
            group["lr"] = rate * share

    def has_even_pace(self, epoch: int) -> bool:
        """Return whether the steps of an epoch take as long as those of later ones.

        Not where the blocks are not trained yet, nor in the first epoch that computes maps once.
        """
        first = self.config.head_epochs + 1  # in which the blocks are trained
        return epoch > first if self._always_frozen and self._images_recur else epoch >= first

    def set_training(self) -> None:
        """Put what is trained into training mode: frozen blocks keep their running statistics."""
        self.model.train()
        for block in self._blocks[: self._n_frozen]:
            block.eval()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch; of frozen blocks the maps alone are computed."""
        if self._maps is None:
            return self.model.loss(x, y)
        logits = self._maps.logits(x, keep=self._images_recur)
        return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of images, for validation: (B, C, H, W) -> (B,)."""
        return super().logits(x) if self._maps is None else self._maps.logits(x, keep=True)

    def adapt(self, record: EpochRecord) -> None:
        """Adapt the learning rates to the validation, each by the same factor."""
        self._set_rates([1.0] * len(self._rates))
        super().adapt(record)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]


def can_recur(config: TrainConfig) -> bool:
    """Return whether an augmented image can be the same again: it is flipped or turned at most."""
    a = config.augment
    changes_colours = any((a.brightness, a.contrast, a.saturation, a.hue, a.stain))
    return a.zoom == 1 and not changes_colours and config.model.preprocess.crop is None


def _find_problem(config: TrainConfig) -> str | None:
    kind = find_architecture(config.model.name)
    found = fine_tuning_settings(config)
    if not (issubclass(kind, BlockClassifier) or _NEED_BLOCKS.isdisjoint(found)):
        with_blocks = sorted(n for n, k in MODELS.items() if issubclass(k, BlockClassifier))
        names = ", ".join(sorted(_NEED_BLOCKS & set(found)))
        return (
            f"{names}: the model has no blocks that can be frozen or have their own rate; leave "
            f"that out, or take one of {', '.join(with_blocks)}"
        )
    if issubclass(kind, BlockClassifier):
        n = kind.n_blocks
        if isinstance(config.freeze, int) and config.freeze > n:
            return (
                f"freeze must be at most {n}, the number of its blocks, or all; got {config.freeze}"
            )
        if config.freeze in ("all", n):
            idle = [name for name in ("head_epochs", "layer_decay") if name in found]
            if idle:
                return (
                    f"{', '.join(idle)}: no effect, since all blocks are frozen (freeze: "
                    f"{config.freeze}); leave that out, or freeze fewer"
                )
    if config.head_epochs >= config.max_epochs:
        return (
            f"head_epochs={config.head_epochs} leaves no epoch for the blocks, max_epochs being "
            f"{config.max_epochs}; set freeze: all to train the head alone"
        )
    if config.head_epochs and config.processes > 1:
        return (
            "head_epochs needs processes: 1, since what is trained changes after these epochs; got "
            f"processes={config.processes}"
        )
    if config.moment_steps and config.optimizer == "sgd":
        return "moment_steps: sgd has no second moments; leave that out, or set warmup_steps"
    return None


# Settings that are about blocks and the head.
_NEED_BLOCKS = frozenset({"freeze", "head_epochs", "head_lr", "layer_decay"})
