"""Optimisers, learning-rate schedules, and the update of the weights from a dict of losses."""

import inspect
import math

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mdistiller.config.length import num_epochs
from mdistiller.distributed import sum_over_ranks, world_size
from mdistiller.engine.graphs import DOT_TRAINERS, why_eager
from mdistiller.engine.weights import misfit
from mdistiller.errors import UserError

SCALES_ON_MPS = (2, 8)  # the first PyTorch whose gradient scaler needs no float64, which MPS lacks
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def learning_rate(solver: CfgNode, epoch: int, step: float = 0, num_batches: int = 1) -> float:
    """The learning rate for step number `step` (from 0) of `num_batches` in epoch number `epoch` (from 1).

    Schedule "step": the rate is multiplied by LR_DECAY_RATE for each milestone of LR_DECAY_STAGES with
    `epoch > milestone` (as in mdistiller), or for each milestone of SOLVER.STEPS, counted in updates, that is reached
    (as in detectron2). "cosine": half a cosine from LR down to MIN_LR at the end of the last epoch. The warm-up is
    linear: from 0 over WARMUP_EPOCHS, or from WARMUP_FACTOR * LR over the first WARMUP_ITERS updates.
    """
    done, iteration = epoch - 1 + step / num_batches, ((epoch - 1) * num_batches + step) // solver.ACCUMULATE
    if done < solver.WARMUP_EPOCHS:
        return solver.LR * done / solver.WARMUP_EPOCHS
    if solver.SCHEDULE == "step":
        milestones = [iteration >= stage for stage in solver.STEPS] or [epoch > s for s in solver.LR_DECAY_STAGES]
        rate = solver.LR * solver.LR_DECAY_RATE ** sum(milestones)
    else:
        part = (done - solver.WARMUP_EPOCHS) / max(num_epochs(solver) - solver.WARMUP_EPOCHS, 1e-9)
        rate = solver.MIN_LR + (solver.LR - solver.MIN_LR) * (1 + math.cos(math.pi * part)) / 2
    if iteration < solver.WARMUP_ITERS:
        rate *= solver.WARMUP_FACTOR + (1 - solver.WARMUP_FACTOR) * iteration / solver.WARMUP_ITERS
    return rate


def build_updater(cfg: CfgNode, distiller, device: torch.device) -> "Updater":
    """The optimiser that SOLVER configures, for all learnable parameters (see `parameter_groups`).

    Gradients are clipped to SOLVER.CLIP_NORM if it is not 0, else to the method's own `clip_norm` if it has one. Raises
    UserError for settings that cannot be combined.
    """
    solver = cfg.SOLVER
    if solver.SKIP_NONFINITE and solver.ACCUMULATE > 1:
        raise UserError(f"SOLVER.SKIP_NONFINITE: needs SOLVER.ACCUMULATE 1; found {solver.ACCUMULATE}")
    recorded = why_eager(cfg, device, distiller.varying_modules) is None
    rate = torch.tensor(solver.LR, device=device) if recorded else solver.LR  # a recorded step reads a tensor
    # the fused SGD needs the momenta of all parameters or of none: no step may leave some without a gradient
    fused = {"fused": True} if recorded and device.type == "cuda" else {}
    if solver.AMP == "fp16" and device.type == "mps" and torch.__version__ < SCALES_ON_MPS:
        needed = ".".join(map(str, SCALES_ON_MPS))
        raise UserError(f"SOLVER.AMP: fp16 on mps needs PyTorch {needed} or newer; this is {torch.__version__}")
    scaler = torch.amp.GradScaler(device.type, enabled=solver.AMP == "fp16")
    if solver.TRAINER in DOT_TRAINERS:
        return DOTUpdater(_dot(solver, distiller), scaler, distiller.task.supervised_terms)
    groups = parameter_groups(distiller, solver)
    if solver.TYPE == "AdamW":
        optimizer = lean(torch.optim.AdamW)(
            groups, lr=rate, betas=tuple(solver.BETAS), eps=solver.EPS, weight_decay=solver.WEIGHT_DECAY,
            capturable=recorded, **fused,
        )
    else:
        if solver.NESTEROV and not solver.MOMENTUM:
            raise UserError("SOLVER.NESTEROV: True needs a SOLVER.MOMENTUM above 0; found 0")
        optimizer = lean(torch.optim.SGD)(
            groups, rate, solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY, nesterov=solver.NESTEROV, **fused
        )
    return Updater(optimizer, scaler, solver.CLIP_NORM or getattr(distiller, "clip_norm", 0.0))


def lean(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """An optimiser's class that updates the same, but never imports PyTorch's compiler, which takes two seconds.

    PyTorch imports it in these methods to tell it that they are not to be compiled; nothing here compiles them.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def _dot(solver, distiller):
    needed = {"TYPE": "SGD", "NESTEROV": False, "CLIP_NORM": 0.0, "ACCUMULATE": 1, "NO_DECAY": "none"}
    for key, value in needed.items():
        if solver[key] != value:
            raise UserError(f"SOLVER.{key}: SOLVER.TRAINER {solver.TRAINER} needs {value}; found {solver[key]}")
    if solver.AMP == "fp16":
        raise UserError(f"SOLVER.AMP: SOLVER.TRAINER {solver.TRAINER} needs none or bf16; found fp16")
    if clip_norm := getattr(distiller, "clip_norm", 0.0):  # of two gradients, no norm to clip at is defined
        key = f"{distiller.config_key}.CLIP_NORM"
        raise UserError(f"{key}: SOLVER.TRAINER {solver.TRAINER} needs 0.0; found {clip_norm}")
    return DOT(distiller.learnable_parameters(), solver.LR, solver.MOMENTUM, solver.DOT.DELTA, solver.WEIGHT_DECAY)


def parameter_groups(distiller, solver: CfgNode) -> list:
    """The learnable parameters as a list, or as two groups when SOLVER.NO_DECAY excludes some from weight decay.

    "norm" excludes the parameters of normalisation layers; "norm_and_bias" also excludes every bias.
    """
    parameters = distiller.learnable_parameters()
    if solver.NO_DECAY == "none":
        return parameters
    spared = {id(parameter) for module in distiller.modules() if isinstance(module, NORMS) or
              type(module).__name__.endswith(("LayerNorm", "RMSNorm")) for parameter in module.parameters(False)}
    if solver.NO_DECAY == "norm_and_bias":
        spared |= {id(p) for name, p in distiller.named_parameters() if name.rpartition(".")[2] == "bias"}
    groups = [
        {"params": [parameter for parameter in parameters if id(parameter) not in spared]},
        {"params": [parameter for parameter in parameters if id(parameter) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Updater:
    """Backward pass, gradient clipping and optimiser step."""

    own_reduction = False  # whether this class averages gradients over ranks itself, instead of DDP

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float = 0.0):
        self.optimizer, self.scaler, self.clip_norm = optimizer, scaler, clip_norm
        rate = optimizer.param_groups[0]["lr"]
        self.rate = rate if isinstance(rate, Tensor) else None  # the tensor that recorded steps read
        self.settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def set_learning_rate(self, rate: float) -> None:
        rate = rate if self.rate is None else self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, losses: dict[str, Tensor], first: bool = True, last: bool = True) -> None:
        """Add the gradients of the sum of the losses; after the `last` batch of an update, step the optimiser.

        `first` clears the gradients. Parameters without a gradient keep their values and momenta.
        """
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values())).backward()
        if not last:
            return
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over the saved state, but not the settings, which are those of the configuration and of this device.

        Raises ValueError for a state of other parameters.
        """
        _check_state(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        if not all(isinstance(value, int | float) for value in state["scaler"].values()):
            raise ValueError(f"the scaler's state is {state['scaler']}")
        if state["scaler"]:  # older versions scaled only on CUDA
            self.scaler.load_state_dict(state["scaler"])


def _check_state(optimizer, state):
    """Raise ValueError for a state of an optimiser that it would take over, but not continue with."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else set()
    for number, parameter in zip(numbers, parameters, strict=False):
        entries = state["state"].get(number, {})
        if entries and needed - entries.keys():
            raise ValueError(f"{min(needed - entries.keys())} of parameter {number} is missing")
        for name, value in entries.items():
            one = torch.zeros(()) if name == "step" else parameter
            text = None if value is None else misfit(f"{name} of parameter {number}", value, one)
            if text and not (name == "step" and isinstance(value, int | float)):
                raise ValueError(text)


class DOT(torch.optim.Optimizer):
    """SGD with a momentum of its own for each of two gradients (Zhao, Cui, Song, Liang, ICCV 2023, arXiv:2307.08436).

    v_task <- (momentum - delta) v_task + g_task + weight_decay * p
    v_soft <- (momentum + delta) v_soft + g_soft
    p      <- p - lr (v_task + v_soft)
    With delta 0 this is SGD on the sum of both losses. A parameter with a gradient from only one loss, such as one of a
    method's own module, uses the unchanged momentum, as in mdistiller.
    """

    def __init__(self, parameters, lr: float, momentum: float, delta: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, task: list[Tensor | None], soft: list[Tensor | None]) -> None:
        """Update with the gradients of the task's loss and of the distillation losses, in the order of the parameters.

        An entry is None for a parameter that does not influence that loss.
        """
        gradients = iter(zip(task, soft, strict=True))
        for group in self.param_groups:
            for parameter in group["params"]:
                shifted = zip(("task", "soft"), next(gradients), (-group["delta"], group["delta"]), strict=True)
                terms = [term for term in shifted if term[1] is not None]
                velocity = []
                for name, gradient, delta in terms:
                    # weight decay is applied once; with only a distillation gradient from the second step on, as in
                    # mdistiller
                    if not velocity and (name == "task" or name in self.state[parameter]):
                        gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    momentum = group["momentum"] + (delta if len(terms) == 2 else 0.0)
                    if name not in self.state[parameter]:
                        self.state[parameter][name] = torch.zeros_like(parameter)
                    velocity.append(self.state[parameter][name].mul_(momentum).add_(gradient))
                if velocity:
                    parameter.sub_(sum(velocity), alpha=group["lr"])


class DOTUpdater(Updater):
    """Separate gradients for the sum of the supervised losses, named `supervised`, and for that of the others."""

    own_reduction = True

    def __init__(self, optimizer: DOT, scaler: torch.amp.GradScaler, supervised: tuple[str, ...] = ("ce",)):
        super().__init__(optimizer, scaler)
        self.supervised = supervised

    def step(self, losses: dict[str, Tensor], first: bool = True, last: bool = True) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        distilled = [loss for name, loss in losses.items() if name not in self.supervised]
        soft = self._gradients(sum(distilled), parameters, keep=True) if distilled else [None] * len(parameters)
        task = self._gradients(sum(losses[name] for name in self.supervised), parameters)
        self.optimizer.step(task, soft)

    @staticmethod
    def _gradients(loss, parameters, keep=False):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
        if world_size() > 1:
            return [None if g is None else sum_over_ranks(g) / world_size() for g in gradients]
        return list(gradients)
