"""One loop for all training: AdamW, a schedule, a moving average of the weights, rounds that end on disk.

`scratch.train` trains a classifier with it, `finetune.finetune` the methods of papers A and B. Every random draw is a
function of (seed, step), so that a run killed at any moment continues to the same weights: on a CPU to the bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from nullpaper.errors import InputError, check_count, check_number, check_path, shown
from nullpaper.files import check_writable, write_atomic
from nullpaper.models.gradients import fast_gradients
from nullpaper.models.graphs import Replay
from nullpaper.models.vit import HALF

LOOK = 10  # steps between two looks at the loss: each waits for the device
LARGEST_SEED = 2**32 - 1  # what is drawn from is a multiple of it that has to stay below 2^63

Record = dict[str, float]
Inputs = Callable[[int], Sequence[Tensor | None]]  # of a step: what its loss is a function of


class Trainer:
    """The state of a run: weights, their average, AdamW's moments, and a history with one record a round.

    Args:
        model: trained in place, where its parameters live.
        recipe: `scratch.Recipe` or `methods.FinetuneRecipe`; decay, betas, clipping and the average's memory count.
        path: where the state is kept; None: nowhere. What is there is taken up.
        others: further models that belong to the state, by name.

    Raises:
        InputError: the state at ``path`` is damaged or of another model, or nothing of ``model`` asks for gradients.
    """

    def __init__(self, model: nn.Module, recipe: Any, seed: int, path: Path | None, **others: nn.Module) -> None:
        self.model, self.recipe, self.seed, self.path = model, recipe, seed, path
        self.averaged = deepcopy(model).eval().requires_grad_(False)
        self.optimizer = adamw(model, recipe, learning_rate=0.0)
        self.modules = nn.ModuleDict({"vit": model, "averaged": self.averaged, **others})
        self.history: list[Record] = []
        if path is not None and path.exists():
            self._restore(path)

    @property
    def step(self) -> int:
        """Steps that have been taken."""
        return int(self.history[-1]["step"]) if self.history else 0

    def run(
        self,
        steps: int,
        length: int,
        rate: Callable[[int], float],
        begin: Callable[[int], tuple[Inputs, Record]],
        loss: Callable[..., Tensor],
        judge: Callable[[Record], Record],
        *,
        name: str,
        static: bool = False,
        progress: bool = True,
    ) -> None:
        """Rounds of ``length`` steps until ``steps`` are taken; each ends with a record in the history, and on disk.

        Args:
            rate: the learning rate of a step.
            begin: called with the first step of a round; returns the inputs of each step, drawn from the generators
                that the step seeds, and the record's first entries.
            loss: of the inputs, by the model.
            judge: completes the record of a round.
            static: whether ``loss`` runs the same operators at every step and waits for nothing, so that a GPU may
                replay a step as one graph.

        Raises:
            InputError: the loss is not finite, or the disk is full; the state of the last round stays on disk.
        """
        advance = self._descended(loss)
        advance = Replay(advance) if static else advance
        with tqdm(total=steps, initial=self.step, desc=name, unit="step", disable=not progress) as bar:
            while self.step < steps:
                begun, first, last = time.perf_counter(), self.step, min(self.step + length, steps)
                inputs, record = begin(first)
                with fast_gradients(self.model):  # what judges the round is outside
                    record |= {"step": last, "loss": self._steps(first, last, rate, inputs, advance, bar)}
                record = judge(record | {"learning_rate": rate(last - 1)})
                self.history.append(record | {"seconds": time.perf_counter() - begun})
                self._save()

    def _steps(
        self, first: int, last: int, rate: Callable[[int], float], inputs: Inputs, advance: Callable, bar: tqdm
    ) -> float:
        """Take the steps of a round; their mean loss."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=next(self.model.parameters()).device)
        for step in range(first, last):
            total += self._step(step, rate(step), inputs, advance)
            if (step - first) % LOOK == 0 or step == last - 1:
                mean = total.item() / (step - first + 1)
                if not math.isfinite(mean):
                    kept = "" if self.path is None else f"; the state of step {self.step} is kept"
                    raise InputError(f"the loss is {mean} at step {step + 1}: lower the learning rate{kept}.")
                dev = self.history[-1]["dev_accuracy"] if self.history else math.nan
                bar.set_postfix(loss=f"{mean:.3f}", dev=f"{dev:.1%}")
            bar.update()
        self.model.eval()
        return mean

    def _descended(self, loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
        def advance(*inputs: Tensor | None) -> tuple[Tensor]:
            value = loss(*inputs)
            descend(self.model, self.optimizer, value, self.recipe.clip_norm)
            return (value.detach(),)

        return advance

    def _step(self, step: int, rate: float, inputs: Inputs, advance: Callable) -> Tensor:
        for group in self.optimizer.param_groups:
            set_rate(group, rate)
        with draws_from(self.seed * 1_000_003 + step, next(self.model.parameters()).device):
            (loss,) = advance(*inputs(step))
        decay = min(self.recipe.ema, (1 + step) / (10 + step))  # short memory while the weights still move fast
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
            for average, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):  # batch statistics
                average.lerp_(value, 1 - decay) if average.is_floating_point() else average.copy_(value)
        return loss

    def _save(self) -> None:
        """Write the whole state as one file, in one step: the tensors, and the history as JSON in its header."""
        if self.path is None:
            return
        moments = {
            f"moments.{index}.{key}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in (self.modules.state_dict() | moments).items()
        }
        write_atomic(self.path, save(tensors, metadata={"history": json.dumps(self.history)}))

    def _restore(self, path: Path) -> None:
        """Put back what `_save` wrote."""
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                history = json.loads((file.metadata() or {})["history"])
            for name in [name for name in tensors if name.startswith("moments.")]:
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensors.pop(name)
            self.modules.load_state_dict(tensors)
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
            raise InputError(f"{path} is damaged or of another model: remove it to start anew.") from error
        self.history = history


def state_file(folder: str | Path, name: str, *described: Any) -> Path:
    """Where the state of exactly the run that ``described`` (JSON data, numbers of NumPy too) names is kept.

    Raises:
        InputError: nothing can be written there.
    """
    text = json.dumps(described, sort_keys=True, default=lambda number: number.item())
    path = check_path("folder", folder) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    check_writable(path.parent)
    return path


def check_training(recipe: Any) -> None:
    """Refuse what `Trainer` and `adamw` read of a recipe where it is out of range.

    Raises:
        InputError: it is; the value is named.
    """
    check_count("batch_size", recipe.batch_size)
    for name in ("learning_rate", "clip_norm"):
        check_number(name, getattr(recipe, name), 0, math.inf)
    for name in ("label_smoothing", "ema"):
        check_number(name, getattr(recipe, name), 0, 1, "[]")
    check_number("weight_decay", recipe.weight_decay, 0, math.inf, "[)")
    if not isinstance(recipe.betas, Sequence) or len(recipe.betas) != 2:
        raise InputError(f"betas={shown(recipe.betas)} must be two numbers, the decays of AdamW's moments.")
    for beta in recipe.betas:
        check_number("betas", beta, 0, 1, "[)")


def adamw(model: nn.Module, recipe: Any, learning_rate: float) -> torch.optim.AdamW:
    """AdamW on what trains; decay for matrices alone: not for biases, norms, tokens and positions.

    Raises:
        InputError: no parameter asks for gradients, or one in half precision does.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            raise InputError(
                f"'{name}' is {parameter.dtype}, in which small steps are lost: call float() on the model."
            )

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith(("pos_embed", "_token"))

    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(
            "no parameter of the model asks for gradients, so there is nothing to train: call requires_grad_(True) on "
            "the model, or on the part that is to train."
        )
    matrices, others = ([p for name, p in trained if decays(name, p) is kind] for kind in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    device = trained[0][1].device
    if device.type != "cuda":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=recipe.betas, fused=True)
    rate = torch.tensor(learning_rate, device=device)  # read at every replay of a captured step
    return torch.optim.AdamW(groups, lr=rate, betas=recipe.betas, fused=True, capturable=True)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The learning rate of a group of `adamw`, in place where it lives on a card."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float) -> None:
    """One step along the gradients of ``loss``, clipped to ``clip_norm``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for parameter in model.parameters() if parameter.requires_grad], clip_norm)
    optimizer.step()


def schedule(progress: float, length: float, *, warmup: float = 0.0, final: float = 0.0) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine from 1 to ``final``."""
    if progress < warmup:
        return progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (length - warmup)))
    return final + (1 - final) * cosine


def seeded(seed: int, index: int, stream: int) -> torch.Generator:
    """A generator of its own for each (seed, index, stream), so that a draw does not depend on the draws before it."""
    return torch.Generator().manual_seed((int(seed) * 3 + stream) * 10_000_019 + index)


@contextmanager
def draws_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators, which dropout and augmentation use, start at ``seed``; then they are as before.

    Those of the CPU and of ``device``: no step waits for other cards, or wakes them.
    """
    cards = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(cards):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[card] for card in cards)):
            generator.manual_seed(seed)
        yield
