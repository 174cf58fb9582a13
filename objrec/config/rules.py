"""Rules of a training that span settings, and settings that would have no effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from objrec.config.backbone_names import has_patch_embedding, name_problem
from objrec.config.errors import did_you_mean
from objrec.config.metrics import LOGGED, mode_problem
from objrec.config.schema import Config

# what torch's and Lightning's classes take, where their argument has this name: (lowest, highest, highest is legal)
BOUNDS: dict[str, tuple[float, float, bool]] = {
    "optimizer.lr": (0, math.inf, False),
    "optimizer.betas": (0, 1, False),
    "optimizer.momentum": (0, 1, False),
    "optimizer.sgd_momentum": (0, 1, False),
    "optimizer.weight_decay": (0, math.inf, False),
    "optimizer.head_lr": (0, math.inf, False),
    "optimizer.other_lr": (0, math.inf, False),
    "optimizer.steps": (1, math.inf, False),
    "scheduler.warmup": (0, 1, False),
    "scheduler.pct_start": (0, 1, True),
    "scheduler.momentum_swing": (0, 0.5, True),
    "scheduler.step_size": (1, math.inf, False),
    "scheduler.gamma": (0, math.inf, False),
    "scheduler.factor": (0, 1, True),
    "scheduler.patience": (0, math.inf, False),
    "scheduler.total_iters": (0, math.inf, False),
    "callbacks.patience": (0, math.inf, False),
    "callbacks.save_top_k": (-1, math.inf, False),
}


def training_problems(config: Config) -> list[str]:
    """Return what is wrong with the settings of a training, each line beginning with the key to change."""
    return [
        *_backbone(config),
        *_rates(config),
        *_scheduler(config),
        *_monitors(config),
        *(line for key, node in _nodes(config) for line in _numbers(key, node)),
    ]


def _nodes(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "optimizer", config.optimizer
    yield "scheduler", config.scheduler
    yield from ((f"callbacks.{k}", v) for k, v in config.callbacks.items() if v)


def _backbone(config: Config) -> Iterator[str]:
    train, backbone = config.train, config.backbone
    if (problem := name_problem(backbone.name)) is not None:
        yield problem
    elif backbone.small_input and has_patch_embedding(backbone.name):
        yield f"backbone.small_input=true: {backbone.name} cuts images into patches and has no stem to change"
    if not backbone.frozen and train.freeze_epochs >= train.max_epochs:
        yield (
            f"train.freeze_epochs={train.freeze_epochs} leaves no epoch of {train.max_epochs} to train "
            "more than the head; for that, backbone.frozen=true"
        )
    if train.freeze_batch_norm and not backbone.pretrained and backbone.weights is None:
        yield (
            "train.freeze_batch_norm: random weights have no batch statistics to keep: backbone.pretrained=true, "
            "backbone.weights=FILE, or train.freeze_batch_norm=false"
        )


def _rates(config: Config) -> Iterator[str]:
    """``train.learning_rate`` is the one learning rate; files refer to it."""
    rate = config.train.learning_rate
    if "lr" not in config.optimizer:
        yield "optimizer.lr: has no value; in its file: lr: ${train.learning_rate}"
    for key, node, name in (("optimizer", config.optimizer, "lr"), ("scheduler", config.scheduler, "max_lr")):
        found = node.get(name, rate)
        if found != rate:
            yield (
                f"{key}.{name}={found}: the learning rate is train.learning_rate, here {rate}: set "
                f"train.learning_rate={found} instead (in a file of your own: {name}: ${{train.learning_rate}})"
            )


def _scheduler(config: Config) -> Iterator[str]:
    node = config.scheduler
    if str(node.get("_target_")).endswith("ReduceLROnPlateau"):
        if node.get("monitor") is None:
            yield "scheduler.monitor: has no value; set the metric, as in scheduler.monitor=val/loss"
        if node.get("interval") != "epoch":
            yield f"scheduler.interval={node.get('interval')}: should be epoch with scheduler=plateau"
    elif node.get("interval") not in ("epoch", "step"):
        yield f"scheduler.interval={node.get('interval')}: should be epoch or step"


def _monitors(config: Config) -> Iterator[str]:
    """A callback of the user's own may log metrics that are not known here."""
    targets = (str(node.get("_target_")) for node in config.callbacks.values() if node)
    own = any(not t.startswith(("lightning.", "pytorch_lightning.")) for t in targets)
    for key, node in _nodes(config):
        monitor = node.get("monitor")
        if monitor is not None and monitor not in LOGGED and not own:
            yield f"{key}.monitor: '{monitor}' is not logged.{did_you_mean(str(monitor), LOGGED)}"
        elif (problem := mode_problem(node, key)) is not None:
            yield problem
        if node.get("save_top_k") == 0:
            yield f"{key}.save_top_k=0: should be 1, or -1 for all: 0 keeps no epoch to export"


def _numbers(key: str, node: Mapping[str, Any]) -> Iterator[str]:
    for name, value in node.items():
        low, high, closed = BOUNDS.get(f"{key.partition('.')[0]}.{name}", (-math.inf, math.inf, False))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if not math.isfinite(number):
                yield f"{key}.{name}={value}: should be a finite number"
            elif not (low <= number < high or (closed and number == high)):
                upto = "" if high == math.inf else f" and {'at most' if closed else 'below'} {high:g}"
                yield f"{key}.{name}={value}: should be at least {low:g}{upto}"


def _get(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _cuts_boxes(data: Any) -> bool:
    name, scale, ratio = (_get(data, f"augmentation.{k}") for k in ("name", "scale", "ratio"))
    return name != "none" and scale is not None and ratio is not None


def _has_momentum(data: Any) -> bool:
    """Whether the optimizer takes ``train.momentum``: its file says so by reference, of which the value is left."""
    momentum, betas = _get(data, "optimizer.momentum"), _get(data, "optimizer.betas")
    return _get(data, "train.momentum") in (momentum, betas[0] if isinstance(betas, list) and betas else None)


def _augments(data: Any) -> bool:
    return bool(_get(data, "augmentation.name") != "none")


# key -> (whether it has an effect, what gives it one)
EFFECTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "train.momentum": (_has_momentum, "this optimizer does not take it; see optimizer.momentum or optimizer.betas"),
    "train.learning_rate": (lambda d: not _get(d, "train.find_lr"), "train.find_lr=true finds the learning rate"),
    "train.focal_gamma": (lambda d: _get(d, "train.loss") == "focal", "it needs train.loss=focal"),
    "train.memory_limit": (lambda d: _get(d, "train.batch_size") == "auto", "it needs train.batch_size=auto"),
    "train.freeze_epochs": (lambda d: not _get(d, "backbone.frozen"), "backbone.frozen=true freezes all epochs"),
    "train.layer_decay": (lambda d: not _get(d, "backbone.frozen"), "with backbone.frozen=true only the head learns"),
    "train.progressive_resize": (
        lambda d: (_get(d, "preprocess.image_size") or 0) > 32,
        "images are never made smaller than 32 px: it needs a larger preprocess.image_size",
    ),
    "augmentation.scale": (_cuts_boxes, "it needs augmentation.ratio, as augmentation=flip_crop has"),
    "augmentation.ratio": (_cuts_boxes, "it needs augmentation.scale, as augmentation=flip_crop has"),
    "augmentation.pad": (_augments, "augmentation.name=none moves nothing"),
    "augmentation.flip": (_augments, "augmentation.name=none mirrors nothing"),
    "augmentation.flip_mode": (
        lambda d: _augments(d) and bool(_get(d, "augmentation.flip")),
        "it needs augmentation.flip, and a name other than none",
    ),
    "augmentation.num_ops": (lambda d: _get(d, "augmentation.name") == "rand", "only augmentation=rand reads it"),
    "augmentation.magnitude": (lambda d: _get(d, "augmentation.name") == "rand", "only augmentation=rand reads it"),
    "augmentation.erase_area": (lambda d: bool(_get(d, "augmentation.erase")), "it needs augmentation.erase"),
    "datamodule.store_size": (_cuts_boxes, "it needs random boxes, as augmentation=flip_crop cuts them"),
    "scheduler.total_iters": (lambda d: _get(d, "scheduler.factor") != 1, "it needs scheduler.factor below 1"),
    "scheduler.factor": (
        lambda d: _get(d, "scheduler.total_iters") != 0,
        "it needs scheduler.total_iters, the epochs at that share of the rate",
    ),
}


def without_effect(key: str, data: Mapping[str, Any]) -> str | None:
    """Return why a key that the user has set would do nothing in this configuration, or None."""
    value = _get(data, key)
    if value is None or value is False:
        return None  # switched off, as it is anyway
    if key.startswith("callbacks.") and key.endswith(".save_top_k"):
        if value in (0, 1) or _get(data, "train.keep_checkpoints"):
            return None
        return (
            f"{key}={value} has no effect: checkpoints are removed in the end; train.keep_checkpoints=true keeps them"
        )
    works, reason = EFFECTS.get(key, (None, ""))
    return None if works is None or works(data) else f"{key}={value} has no effect: {reason}"
