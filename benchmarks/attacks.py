"""PGD of `nullpaper.robustness.pgd` against PGD of torchattacks: accuracy that both leave, and what it costs.

    python benchmarks/attacks.py --images 1000

CIFAR-10 test images at 48 px and the shipped ViT; both attacks take the same steps from their own uniform start. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.robustness.pgd import REACH, frozen, pgd
from nullpaper.statistics import paired_difference, proportion


def library(vit: ViT, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    return torchattacks.PGD(vit, eps=eps, alpha=REACH * eps / steps, steps=steps)(images, labels)


def ours(vit: ViT, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    return pgd(vit, images, labels, eps=eps, steps=steps)


def stopping(vit: ViT, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    return pgd(vit, images, labels, eps=eps, steps=steps, stop_when_fooled=True)


METHODS: dict[str, Callable[[ViT, Tensor, Tensor, float, int], Tensor]] = {
    "torchattacks": library,
    "ours": ours,
    "ours, stopping": stopping,
}


def measured(
    vit: ViT, batches: list[tuple[Tensor, Tensor]], eps: float, steps: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Which images each method leaves correct, and its seconds: CPU time where there is no GPU.

    The methods take turns on every batch, so that a change in the machine's load meets all of them.
    """
    correct, seconds = {name: [] for name in METHODS}, dict.fromkeys(METHODS, 0.0)
    clock = time.perf_counter if batches[0][0].is_cuda else time.process_time
    for images, labels in batches:
        for name, method in METHODS.items():
            begin = clock()
            found = method(vit, images, labels, eps, steps)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[name] += clock() - begin
            with torch.no_grad(), frozen(vit):
                correct[name].append(vit(found).argmax(1) == labels)
    return {name: torch.cat(parts).cpu() for name, parts in correct.items()}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="test images (default: 1000)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0, 8.0], help="radii in units of 1/255 (1 and 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(0)
    vit = load_vit(SHIPPED, device=device)
    test = load_data("cifar10").test
    images = to_pixels(test.images[: args.images], size=vit.image_size, device=device)
    labels = torch.from_numpy(test.labels[: args.images]).long().to(device)
    batches = list(zip(images.split(args.batch_size), labels.split(args.batch_size), strict=True))
    with torch.no_grad():
        clean = torch.cat([vit(part).argmax(1) == classes for part, classes in batches]).cpu()
    measured(vit, [(images[:16], labels[:16])], 1 / 255, 1)

    print(f"clean accuracy {proportion(clean):.3f}, {torch.get_num_threads()} thread(s), {device}")
    rows = []
    for units in args.eps:
        correct, seconds = measured(vit, batches, units / 255, args.steps)
        for name, mask in correct.items():
            difference = paired_difference(mask.numpy(), correct["torchattacks"].numpy())
            speedup = seconds["torchattacks"] / seconds[name]
            print(f"{units:g}/255 {name:15s} accuracy {proportion(mask):.3f}, difference {difference:+.3f},")
            print(
                f"{'':8s}{seconds[name]:.1f} s, {len(mask) / seconds[name]:.1f} images/s, {speedup:.2f} x torchattacks"
            )
            row = dict(eps_255=units, method=name, **proportion(mask).columns("accuracy"))
            rows.append(row | difference.columns("difference") | dict(seconds=seconds[name], speedup=speedup))
    print(json.dumps(dict(device=str(device), images=len(images), steps=args.steps, rows=rows)))


if __name__ == "__main__":
    main()
