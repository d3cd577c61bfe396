"""The finetuning loop: fair between methods, repeatable, resumable to the bit, and clear about bad input."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import started
from quick import QUICK, few, start

from nullpaper.data import datasets as data
from nullpaper.errors import InputError
from nullpaper.finetuning import methods
from nullpaper.finetuning.finetune import FinetuneRecipe, FinetuneResult, _fitting, _Run, finetune
from nullpaper.finetuning.methods import METHODS
from nullpaper.finetuning.trainer import draws_from
from nullpaper.models.vit import SHIPPED, ViT, fingerprint, load_vit

GAMMAS = (-1.0, 0.0, 1.0)


@cache
def run(method: str, seed: int = 0, steps: int = 4, **changes) -> FinetuneResult:
    recipe = replace(QUICK, **changes)
    return finetune(start(), few(), method=method, steps=steps, seed=seed, recipe=recipe, progress=False)


def numbers(done: FinetuneResult) -> list[dict[str, float]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in done.history]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_copy_and_says_what_it_did(method: str) -> None:
    before = fingerprint(start())
    done = run(method)
    assert fingerprint(start()) == before != fingerprint(done.vit)
    assert not any(module.training for module in done.vit.modules())
    assert [record["step"] for record in done.history] == [0, 2, 4] and done.best_step in (2, 4)
    assert all(0 <= record["dev_accuracy"] <= 1 for record in done.history)
    assert ("noise_norm" in done.history[1]) is (METHODS[method].noise is not None)
    assert ("dev_robust" in done.history[1]) is bool(METHODS[method].attack)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    again = finetune(start(), few(), method="nullspace", steps=4, recipe=QUICK, progress=False)
    assert fingerprint(again.vit) == fingerprint(run("nullspace").vit) and numbers(again) == numbers(run("nullspace"))
    assert fingerprint(run("nullspace", seed=1).vit) != fingerprint(again.vit)


def resumable(send: Callable[[str], None], folder: Path) -> None:
    options = dict(method="nullspace", steps=6, recipe=QUICK, folder=folder, progress=False)
    finetune(start(), few(), measure=lambda vit: send("round") or {}, **options)


@pytest.mark.long
def test_a_killed_run_continues_to_the_same_weights(tmp_path) -> None:
    child, rounds = started(resumable, tmp_path)
    assert [rounds.recv() for _ in range(2)] == ["round"] * 2  # the start and the first of three rounds
    while not list(tmp_path.glob("finetune-*.safetensors")) and child.is_alive():
        time.sleep(0.005)  # until that round is on disk
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    seen = []
    options = dict(method="nullspace", steps=6, recipe=QUICK, progress=False)
    resumed = finetune(start(), few(), folder=tmp_path, measure=lambda vit: seen.append(1) or {}, **options)
    assert 1 <= len(seen) <= 2
    whole = run("nullspace", steps=6)
    assert fingerprint(resumed.vit) == fingerprint(whole.vit) and numbers(resumed) == numbers(whole)


def test_the_last_round_counts_where_the_recipe_says_so() -> None:
    whole, chosen = run("zero", last=True, learning_rate=5e-3), run("zero", learning_rate=5e-3)
    assert numbers(whole) == numbers(chosen) and whole.best_step == 4
    assert (fingerprint(whole.vit) == fingerprint(chosen.vit)) is (chosen.best_step == 4)


def test_measure_is_asked_at_the_start_halfway_and_at_the_end() -> None:
    numbers = iter(range(9))
    recipe = replace(QUICK, steps_per_noise=1)
    options = dict(method="standard", steps=5, recipe=recipe, progress=False)
    done = finetune(start(), few(), measure=lambda vit: {"number": next(numbers)}, **options)
    assert [record.get("number") for record in done.history] == [0, None, 1, None, None, 2]


def test_draws_of_a_step_are_its_own_and_leave_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with draws_from(5, torch.device("cpu")):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(4, generator=torch.Generator().manual_seed(5)))


def test_zero_noise_is_standard_finetuning() -> None:
    """The control differs from the method in its noise alone; with the mean over two equal branches nothing is left."""
    for plain, zero in zip(run("standard").history[1:], run("zero").history[1:], strict=True):
        assert zero["noise_norm"] == 0 and zero["loss"] == pytest.approx(plain["loss"], rel=1e-4)


def test_adversarial_training_without_a_ball_is_standard_finetuning() -> None:
    plain = fingerprint(run("standard", steps=2).vit)
    assert fingerprint(run("pgd_at", steps=2, attack_eps=0.0).vit) == plain
    assert fingerprint(run("pgd_at", steps=2).vit) != plain


def test_norms_and_influences_of_the_controls_are_matched() -> None:
    methods = ("nullspace", "random", "random_norm", "permuted")
    first = {method: run(method, steps=2, noise_images=48).history[1] for method in methods}
    norm = first["nullspace"]["noise_norm"]
    assert first["random_norm"]["noise_norm"] == pytest.approx(norm, rel=1e-4)
    assert first["permuted"]["noise_norm"] == pytest.approx(norm, rel=1e-4)
    assert first["random"]["noise_norm"] < 0.9 * norm  # the same eps holds less of a direction that nobody chose
    assert first["random_norm"]["noise_influence"] > first["nullspace"]["noise_influence"]


def test_the_spectral_family_goes_through_random_noise_and_its_noise_gets_shorter() -> None:
    noises = {
        gamma: methods.make_noise(start(), few().dev, "spectral", replace(QUICK, gamma=gamma), 0) for gamma in GAMMAS
    }
    random = methods.make_noise(start(), few().dev, "random", QUICK, 0)
    torch.testing.assert_close(noises[0.0].value, random.value)
    assert noises[1.0].norm < 0.8 * random.norm and noises[1.0].influence.n == random.influence.n
    assert not torch.allclose(noises[-1.0].value / noises[-1.0].norm, random.value / random.norm, atol=1e-3)


@pytest.mark.parametrize("method", ["nullspace", "trades"])
def test_one_forward_pass_over_two_branches_equals_two(method: str) -> None:
    split, vit = few().train, start()
    images, labels = next(iter(split.batches(12, image_size=48)))
    noise = torch.randn(1, 36, 96, generator=torch.Generator().manual_seed(0))
    recipe = replace(QUICK, attack_eps=0.0, beta=0.0)  # the attack gives the images back
    begin = METHODS[method].begin(images, recipe, torch.Generator())
    batch = methods.Batch(images, labels, noise, begin, recipe)
    tokens = vit.embed(images)
    branches = [vit.encode(tokens)] + ([vit.encode(tokens + noise)] if method == "nullspace" else [])
    entropies = [torch.nn.functional.cross_entropy(z, labels, label_smoothing=0.1) for z in branches]
    assert METHODS[method].loss(vit, batch).item() == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-5)


def test_frozen_parameters_stay_to_the_bit() -> None:
    vit = load_vit(SHIPPED)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_("head" in name)
    done = finetune(vit, few(), method="nullspace", steps=2, recipe=QUICK, progress=False)
    for (name, before), after in zip(vit.named_parameters(), done.vit.parameters(), strict=True):
        assert torch.equal(before, after) is ("head" not in name) and before.requires_grad == after.requires_grad


def test_the_noise_is_made_from_dev_images_that_select_nothing() -> None:
    held = _Run(start(), few(), "nullspace", 2, 0, replace(QUICK, dev_images=80))
    noise, dev = ({image.tobytes() for image in split.images} for split in (held.noise_split, held.dev))
    assert len(noise) == 24 and len(dev) == 76 and not noise & dev


def test_without_early_stop_the_published_noise_takes_all_its_steps() -> None:
    recipe = replace(QUICK, official=True, noise_steps=3, noise_lim=0.01)
    norms = {
        stop: methods.make_noise(start(), few().dev, "learned", replace(recipe, early_stop=stop), 0)
        for stop in (True, False)
    }
    assert len(norms[True].history) == 1 and len(norms[False].history) == 3  # so small a start is within eps at once


def test_bad_input_is_refused_before_any_work() -> None:
    def refused(match: str, vit: ViT | None = None, given: data.Data | None = None, **options) -> None:
        with pytest.raises(InputError, match=match):
            finetune(vit or start(), given or few(), **{"method": "zero", "recipe": QUICK, "progress": False} | options)

    refused("method 'nulspace' is unknown. Did you mean 'nullspace'?", method="nulspace")
    refused("steps=0 must be a whole number", steps=0)
    refused(
        "has 10 classes, but the head .* has 7: load the model with num_classes=10", load_vit(SHIPPED, num_classes=7)
    )
    shifted = replace(few(), train=data.Split(few().train.images, few().train.labels + 1))
    few_of_many = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=32)
    refused("has 1,000 classes, but the data have 10: pass load_vit.*restricted", few_of_many)
    refused("labels span 1 to 10, but the classes of the model are 0 to 9", given=shifted)
    refused("noise_images=7 are too few to make a noise: take 8 or more", recipe=replace(QUICK, noise_images=7))
    refused("noise_images=100 leaves none of 100 dev images", recipe=replace(QUICK, noise_images=100))
    for part in ("train", "dev"):  # as of ImageNet's val alone
        refused("no images to train on or to select by", given=replace(few(), **{part: few().train.take([])}))
    refused("batch_size=500 exceeds the 200 training images", recipe=replace(QUICK, batch_size=500))


def test_a_folder_in_text_and_numbers_of_numpy_name_the_same_run(tmp_path) -> None:
    options = dict(method="zero", recipe=QUICK, progress=False)
    finetune(start(), few(), steps=2, seed=1, folder=tmp_path, **options)
    numpy = {"steps": np.int64(2), "seed": np.int32(1), "recipe": replace(QUICK, noise_steps=np.int64(2))}
    again = finetune(start(), few(), folder=str(tmp_path), measure=lambda vit: pytest.fail(), **options | numpy)
    assert len(list(tmp_path.iterdir())) == 1 and again.best_step == 2


def test_a_model_without_a_part_that_trains_is_refused_before_any_work() -> None:
    vit = load_vit(SHIPPED).requires_grad_(False)
    vit.register_forward_hook(lambda *_: pytest.fail())
    options = dict(method="zero", steps=1, recipe=QUICK, progress=False)
    with pytest.raises(InputError, match=r"no parameter of the model asks for gradients.*requires_grad_\(True\)"):
        finetune(vit, few(), **options)
    vit = load_vit(SHIPPED).requires_grad_(False)
    assert fingerprint(finetune(vit, few(), adapter="linear", **options).vit) != fingerprint(vit)
    vit.net.norm.requires_grad_(True)
    assert fingerprint(finetune(vit, few(), **options).vit) != fingerprint(vit)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*file"):
        finetune(
            start(), few(), method="zero", recipe=QUICK, folder=tmp_path / "file", measure=lambda vit: pytest.fail()
        )


def test_a_state_of_another_model_or_damaged_is_refused_and_kept(tmp_path) -> None:
    finetune(start(), few(), method="zero", steps=2, recipe=QUICK, folder=tmp_path, progress=False)
    (state,) = tmp_path.iterdir()
    other, (train, dev) = load_vit(SHIPPED, num_classes=12), (few().train, few().dev)
    twelve = replace(few(), train=replace(train, classes=12), dev=replace(dev, classes=12))
    finetune(other, twelve, method="zero", steps=2, recipe=QUICK, folder=tmp_path, progress=False)
    (theirs,) = set(tmp_path.iterdir()) - {state}
    theirs.write_bytes(whole := state.read_bytes())
    with pytest.raises(InputError, match="damaged or of another model: remove it"):
        finetune(other, twelve, method="zero", steps=2, recipe=QUICK, folder=tmp_path, progress=False)
    state.write_bytes(whole[:-50])
    with pytest.raises(InputError, match="damaged or of another model: remove it"):
        finetune(start(), few(), method="zero", steps=2, recipe=QUICK, folder=tmp_path, progress=False)
    assert state.read_bytes() == whole[:-50]


def starved(send: Callable[[str], None], folder: Path) -> None:
    """Continue a run where no file may be larger than 1 MB, which fails as a full disk does; send the refusal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        finetune(start(), few(), method="standard", steps=4, recipe=QUICK, folder=folder, progress=False)
    except InputError as error:
        send(str(error))


@pytest.mark.long
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path) -> None:
    looks, options = iter([{}, {}]), dict(method="standard", steps=4, recipe=QUICK, folder=tmp_path, progress=False)
    with pytest.raises(StopIteration):  # in the second of two rounds
        finetune(start(), few(), measure=lambda vit: next(looks), **options)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    child, refusals = started(starved, tmp_path)
    refusal = refusals.recv()
    child.join()
    assert refusal.startswith(f"cannot write to {tmp_path}") and "\n" not in refusal and child.exitcode == 0
    assert kept and kept == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_methods_see_the_same_images_in_the_same_order() -> None:
    runs = [_Run(start(), few(), method, 4, 0, QUICK) for method in ("zero", "pgd_at")]
    for step in (0, 3, 26):  # 26: the second epoch
        first, second = (run.batch(step, None) for run in runs)
        assert all(torch.equal(one, other) for one, other in zip(first[:2], second[:2], strict=True))


def test_any_adapter_goes_with_any_method_and_has_a_state_of_its_own(tmp_path) -> None:
    adapters = ["lnlora", {"kind": "lora", "r": 2}, {"kind": "lora", "r": 2, "alpha": 4}, "bitfit", "linear"]
    for adapter in adapters:
        options = dict(method="nullspace", adapter=adapter, steps=2, recipe=QUICK, folder=tmp_path, progress=False)
        finetune(start(), few(), **options)
    assert len(list(tmp_path.iterdir())) == len(adapters)
    with pytest.raises(InputError, match="lnlora"):
        finetune(start(), few(), method="zero", adapter="lnlor", steps=2, recipe=QUICK, progress=False)


def test_a_small_data_set_gets_a_recipe_that_it_has_images_for() -> None:
    small = replace(few(), train=few().train.take(range(12)), dev=few().dev.take(range(10)))
    done = finetune(start(), small, method="nullspace", steps=1, progress=False)
    assert len(done.history) == 2 and done.history[1]["noise_norm"] > 0
    assert _fitting(data.load_data("cifar10")) == FinetuneRecipe()
