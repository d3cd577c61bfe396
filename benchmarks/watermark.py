"""Time and objective of `watermark` against the original's solver, SLSQP, on the same patches, in the L1 and L2 form.

    python benchmarks/watermark.py --images 100 --reference-patches 50

CIFAR-10 test images at 48 px, the drawn logo. SLSQP runs as the original used it (finite differences) and with the
exact gradient, on patches drawn from all those of the images, and stops at its time limit. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.fooling.watermark import draw_logo, official_noise, watermark
from nullpaper.models.vit import SHIPPED, load_vit, patchify
from nullpaper.nullspace.patch import patch_nullspace


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result and the seconds to compare by: a busy machine blurs all but the CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - wall if device.type == "cuda" else time.process_time() - cpu


def objective(x: Tensor, v: Tensor, t: Tensor, norm: str) -> Tensor:
    rest = x + v - t
    return rest.abs().sum(-1) if norm == "l1" else rest.square().sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="images to mark (default: 50)")
    parser.add_argument("--reference-patches", type=int, default=30, help="patches for SLSQP at most (default: 30)")
    parser.add_argument("--limit", type=float, default=60, help="seconds for each of 4 runs of SLSQP (default: 60)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    vit = load_vit(SHIPPED, device=device)
    images = to_pixels(load_data("cifar10").test.images[: args.images], size=vit.image_size, device=device)
    if not 0 < args.images <= len(images) or args.reference_patches < 1:
        raise InputError(f"--images must be 1 to {len(images)} and --reference-patches at least 1.")
    space, logo = patch_nullspace(vit), draw_logo(vit.image_size).to(device)
    patches = args.images * space.image_dim // space.dim
    chosen = torch.randperm(patches, generator=torch.Generator().manual_seed(0))[: args.reference_patches]
    result = dict(device=str(device), threads=torch.get_num_threads(), images=args.images, patches=patches)

    for norm in ("l1", "l2"):
        watermark(space, images[:2], logo, norm=norm)
        (noise, gap), work = timed(lambda norm=norm: watermark(space, images, logo, norm=norm), device)
        result |= {f"{norm} ms per patch": 1e3 * work / patches, f"{norm} largest gap": gap.max().item()}
        parts = (images, noise, logo.expand_as(images))
        x, v, t = (patchify(part.cpu().double(), space.patch_size).flatten(0, 1)[chosen] for part in parts)
        ours = objective(x, v, t, norm)
        for kind, gradient in (("finite differences", False), ("exact gradient", True)):
            begun, theirs, seconds = time.perf_counter(), [], 0.0
            for i in range(len(chosen)):
                if time.perf_counter() - begun > args.limit:
                    break
                call = lambda i=i: official_noise(space, x[i], t[i], norm=norm, gradient=gradient)  # noqa: B023, E731
                found, spent = timed(call, torch.device("cpu"))
                theirs.append(objective(x[i], found, t[i], norm))
                seconds += spent
            excess = (torch.stack(theirs) - ours[: len(theirs)]) / ours[: len(theirs)].clamp_min(1e-6)
            name, slow = f"{norm}, SLSQP with {kind}:", seconds / len(theirs)
            result |= {f"{name} patches": len(theirs), f"{name} ms per patch": 1e3 * slow}
            result |= {f"{name} speedup": slow / (work / patches), f"{name} mean excess": excess.mean().item()}
            result |= {f"{name} least excess": excess.min().item(), f"{name} largest excess": excess.max().item()}
    for name, value in result.items():
        print(f"{name:52s} {value:.4g}" if isinstance(value, float) else f"{name:52s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
