"""What a training step costs through each adapter of the notebooks, and with all weights: disk, memory, time.

    python benchmarks/adapters.py --batch 64 --attack-steps 10 --repeats 5

CIFAR-10 test images at 48 px, the shipped ViT, PGD adversarial training. Times are CPU seconds where one thread
computes, else wall seconds; ratios are to all weights in the same round, for an attack that differentiates with respect
to the images alone and for a careless one that makes the gradients of the weights too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

import torch

from nullpaper.adapters.inject import adapted_copy
from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.finetuning.costs import memory, step_times, storage
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.statistics import Interval
from nullpaper.studies.settings import ADAPTERS


def expected_ratio(attack_steps: int, careless: bool, through: bool) -> float:
    """Passes of a step with a frozen backbone over those with all weights training.

    Forward pass, gradient of the inputs and gradient of the weights count 1 each, the adapter's own layers nothing. An
    attack step is two passes, or three where it makes gradients of weights that train (``careless``). Gradients pass
    the backbone to what trains in or below it (``through``), or the head alone trains.
    """
    return (2 * attack_steps + 1 + through) / ((3 if careless else 2) * attack_steps + 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images in a step (default: 64)")
    parser.add_argument("--attack-steps", type=int, default=10, help="of PGD (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default: 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    test = load_data("cifar10").test
    if not 0 < args.batch <= len(test):
        raise InputError(f"--batch must be 1 to {len(test)}.")
    vit = load_vit(SHIPPED, device=device)
    images = to_pixels(test.images[: args.batch], size=vit.image_size, device=device)
    labels = torch.from_numpy(test.labels[: args.batch]).long().to(device)
    models = {
        name: vit if through is None else adapted_copy(vit, through.options()) for name, through in ADAPTERS.items()
    }
    recipe = FinetuneRecipe(batch_size=args.batch, attack_steps=args.attack_steps)
    rows = {name: storage(model) | memory(model, "pgd_at", recipe, images, labels) for name, model in models.items()}
    result = dict(device=str(device), threads=torch.get_num_threads(), batch=args.batch, attack_steps=args.attack_steps)
    for attack in ("careful", "careless"):
        careless = attack == "careless"
        for row in step_times(
            models, "pgd_at", recipe, images, labels, repeats=args.repeats, careless=careless
        ).to_dict("records"):
            expected = expected_ratio(args.attack_steps, careless, through=row["name"] != "linear")
            row["expected"] = 1.0 if row["name"] == "full" else expected
            rows[row.pop("name")][attack] = row

    print(", ".join(f"{name} {value}" for name, value in result.items()))
    for name, row in rows.items():
        mib = {key: f"{row[key] / 2**20:.2f}" for key in ("gradients", "optimizer", "saved", "step_peak", "total")}
        print(f"{name}: {row['trainable']:,} trainable ({row['share']:.2%}), ", end="")
        print(f"{row['stored_bytes']:,} bytes stored ({row['stored_share']:.2%})")
        print("    MiB: " + ", ".join(f"{key} {value}" for key, value in mib.items()))
        for attack in ("careful", "careless"):
            time = row[attack]
            ratio = Interval(time["ratio"], time["ratio_low"], time["ratio_high"], time["n"])
            print(f"    {attack}: {time['seconds']:.3f} s ({time['clock']}), ", end="")
            print(f"ratio {ratio:.3f}, expected {time['expected']:.3f}")
    print(json.dumps(result | dict(rows=rows)))


if __name__ == "__main__":
    main()
