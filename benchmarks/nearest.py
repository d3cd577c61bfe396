"""Time and accuracy of `PatchNullspace.nearest` against a general convex solver on the same patches.

    python benchmarks/nearest.py --images 10000 --reference-patches 100

Pairs are CIFAR-10 test images at 48 px with the test images in reverse order as targets. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import cvxpy
import numpy as np
import torch

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.models.vit import SHIPPED, load_vit, patchify
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace


def reference(space: PatchNullspace, x: np.ndarray, t: np.ndarray, solver: str) -> np.ndarray:
    """Half the squared distance for each patch (n, D), compiled once and solved one after the other."""
    a, start, target = cvxpy.Variable(space.dim), cvxpy.Parameter(x.shape[1]), cvxpy.Parameter(x.shape[1])
    point = start + space.basis.cpu().numpy() @ a
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(point - target) / 2), [point >= 0, point <= 1])
    values = []
    for start.value, target.value in zip(x, t, strict=True):
        problem.solve(solver=solver, warm_start=True)
        values.append(problem.value)
    return np.array(values)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """The result, the wall time, and the time to compare by: a busy machine blurs all but the CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, wall, wall if device.type == "cuda" else cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="pairs for .nearest (default: 1000)")
    parser.add_argument("--largest", type=int, default=50, help="images for .largest (default: 50, 0 to skip)")
    parser.add_argument("--reference-patches", type=int, default=100, help="patches for the reference (default: 100)")
    parser.add_argument("--solver", default="CLARABEL", choices=("CLARABEL", "OSQP", "SCS"))
    parser.add_argument("--random-weights", action="store_true", help="the shipped architecture with fresh weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(0)
    vit = load_vit(SHIPPED, pretrained=not args.random_weights, device=device)
    pixels = load_data("cifar10").test.images[: args.images]
    images = to_pixels(pixels, size=vit.image_size, device=device)
    if len(images) < args.images:
        raise InputError(f"--images {args.images} is more than the {len(images)} test images; ask for fewer.")
    targets, space = images.flip(0), patch_nullspace(vit)
    space.nearest(images[:8], targets[:8])

    (noise, gap), seconds, work = timed(lambda: space.nearest(images, targets), device)
    outside = torch.maximum((images + noise).amax() - 1, -(images + noise).amin()).item()
    tokens = vit.embed(images[:500]).detach()
    moved = (vit.embed(images[:500] + noise[:500]) - tokens).abs().max() / tokens.abs().max()
    patches = args.images * space.image_dim // space.dim
    result = dict(device=str(device), threads=torch.get_num_threads(), images=args.images, patches=patches)
    result |= dict(seconds=seconds, seconds_per_1000=1000 * seconds / args.images, max_gap=gap.max().item())
    result |= dict(cpu_seconds=work) if device.type == "cpu" else {}
    result |= dict(outside_box=outside, tokens_moved_float32=moved.item())

    if args.reference_patches:
        chosen = torch.randperm(patches, generator=torch.Generator().manual_seed(0))[: args.reference_patches]
        x, t, v = (
            patchify(batch.cpu().double(), space.patch_size).flatten(0, 1)[chosen] for batch in (images, targets, noise)
        )
        optimum, _, slow = timed(lambda: reference(space, x.numpy(), t.numpy(), args.solver), torch.device("cpu"))
        ours = (x + v - t).square().sum(1).numpy() / 2
        slow, fast = slow / len(chosen), work / patches
        result |= dict(reference=args.solver, reference_ms_per_patch=1e3 * slow, ms_per_patch=1e3 * fast)
        result |= dict(speedup=slow / fast)
        result |= dict(worst_excess_over_reference=float(((ours - optimum) / np.maximum(optimum, 1e-6)).max()))
    if args.largest:
        largest, seconds, _ = timed(lambda: space.largest(images[: args.largest]), device)
        certificate = space.certify_largest(images[: args.largest], largest)
        result |= dict(largest_images=args.largest, largest_seconds_per_1000=1000 * seconds / args.largest)
        result |= dict(largest_norm=certificate.norm.mean().item(), upper_bound=certificate.upper_bound.mean().item())
        result |= dict(stationarity=certificate.stationarity.mean().item())
    for name, value in result.items():
        print(f"{name:28s} {value:.4g}" if isinstance(value, float) else f"{name:28s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
