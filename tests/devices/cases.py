"""One call of every public function that takes or makes tensors; what it returns must not depend on the device.

A value is what is compared, or a pair of it and a tolerance: the relative L2 distance allowed, 1e-3 if none is given
(float32 rounds otherwise on another device, and steps along signs make much of it).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from devices.worlds import World, vit_on
from quick import QUICK, few
from torch import Tensor

from nullpaper.adapters import files as adapter_files
from nullpaper.adapters import inject
from nullpaper.data import datasets
from nullpaper.finetuning import costs, methods, scratch
from nullpaper.finetuning.finetune import finetune
from nullpaper.fooling import explanations, faithfulness, lookalike, manipulation, similarity, watermark
from nullpaper.models import attention, checkpoints, graphs, inputs, predict, vit
from nullpaper.nullspace import patch
from nullpaper.robustness import attacks, evaluation, gradient_masking, patch_attack, perturbation, pgd
from nullpaper.synthesis import certified, controls, influence, linearised, noise

EPS = 8 / 255
ADAPTER = {"kind": "lnlora", "r": 3}
ATTACKS = [(name, EPS, 0.13) for name in ("fgsm", "pgd", "cw", "mim", "apgd-5", "autoattack-3")]
ATTACKS += [(name, 1.0, 0.13) for name in ("patch-9", "patch_fool-9")]
ATTACKS += [("square-20", EPS, 0.6)]  # it draws where the model is
Case = Callable[[World], Any]


def fooled(w: World, points: Tensor, eps: float = EPS, tolerance: float = 0.13) -> tuple[Any, float]:
    """What an attack must have reached: within ball and box, the right answers of eight, by default up to one."""
    points, clean, labels = points.cpu(), w.x.cpu(), w.labels.cpu()
    inside = (points - clean).abs().max() <= eps + 1e-6 and points.min() >= 0 and points.max() <= 1
    right = (vit_on("cpu")(points).argmax(1) == labels).float().mean()
    return {"inside": inside, "robust": 1 + right}, tolerance


def measured(found: noise.Noise) -> tuple[Any, float]:
    """Size and influence of a noise that many small steps made."""
    return {"norm": found.norm, "influence": found.influence.value}, 0.05


def on(w: World, value: Tensor) -> Tensor:
    """On the model's device, where ``value`` is on that of the data."""
    return value.to(w.model)


def learned(w: World, **options: Any) -> noise.EncoderNoise:
    return noise.encoder_noise(w.vit, w.many, **{"eps": 0.2, "steps": 6, **options})


def adapted(w: World) -> vit.ViT:
    """With an adapter that changes the answers."""
    model = inject.adapted_copy(w.vit, ADAPTER | {"kind": "lora"}, seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("lora_B.weight"):
                value += 0.01
    return model


def squares(model: vit.ViT, images: Tensor) -> tuple[Tensor, Tensor]:
    return model(images).square(), images.mean((1, 2, 3))


def answered(w: World, model: vit.ViT) -> Tensor:
    return predict.answers(model, w.x.to(model.mean.device))


def carried(w: World, save: Callable, load: Callable) -> Tensor:
    """Answers of what was saved on one device and loaded on the other."""
    path = w.folder / "saved.safetensors"
    save(path)
    return answered(w, load(path))


def trained(w: World, method: str, model: vit.ViT, **options: Any) -> list[Any]:
    found = finetune(model, few(), method=method, steps=2, recipe=QUICK, progress=False, **options)
    return [[1 + record["dev_accuracy"], record.get("loss", 0)] for record in found.history]


def resumed(w: World) -> tuple[Any, float]:
    """A run that begins on one device is found finished on the other."""
    folder = w.folder
    first, second = (trained(w, "nullspace", model, folder=folder) for model in (w.vit, w.other))
    assert first == second, "the state of the run was not taken up"
    return first, 0.1


def equal_keys(w: World) -> Tensor:
    """A message that is hidden on one device and read on the other."""
    message = drawn_bits(w)
    hidden = watermark.encode_message(w.space, w.x, message, key=7)
    space = patch.patch_nullspace(w.other)
    read = watermark.decode_message(space, w.x + hidden.noise.to(w.x), key=7, length=16)
    return read.cpu() == message.cpu()


def drawn_bits(w: World) -> Tensor:
    return (torch.rand(8, 16, generator=w.draws) < 0.5).to(w.data)


ANYWHERE: dict[str, Case] = {  # model and data may live on different devices
    "datasets.Split.batches": lambda w: [*few().dev.subset(8).batches(4, image_size=48, device=w.model)],
    "vit.ViT.restricted": lambda w: answered(w, w.vit.restricted([7, 0, 3])),
    "vit.ViT.unrestricted": lambda w: answered(w, w.vit.restricted([7, 0, 3]).unrestricted()),
    "checkpoints.load_classifier": lambda w: [
        predict.answers(checkpoints.load_classifier(name, device=w.model), on(w, w.x))
        for name in checkpoints.ARCHITECTURES
    ],
    "inputs.check_images": lambda w: inputs.check_images(w.vit, w.x),
    "inputs.check_labelled": lambda w: inputs.check_labelled(w.vit, w.x, w.labels),
    "inputs.check_labels": lambda w: inputs.check_labels(w.labels, 8, 10),
    "predict.accuracy": lambda w: predict.accuracy(w.vit, w.split),
    "predict.correct": lambda w: predict.correct(w.vit, w.split),
    "predict.predictions": lambda w: predict.predictions(w.vit, w.split),
    "vit.fingerprint": lambda w: vit.fingerprint(w.vit),
    "vit.load_vit": lambda w: answered(w, vit.load_vit(vit.SHIPPED, device=w.model)),
    "vit.save_vit": lambda w: carried(
        w,
        lambda path: vit.save_vit(w.vit, path),
        lambda path: vit.load_vit(vit.SHIPPED, weights=path, device=w.data),
    ),
    "patch.patch_nullspace": lambda w: vars(w.space),
    "patch.channel_nullspace": lambda w: vars(patch.channel_nullspace(w.vit)),
    "patch.PatchNullspace.project": lambda w: w.space.project(w.x),
    "patch.PatchNullspace.sample": lambda w: w.space.sample(w.x.shape, norm=vit.norms(w.x), generator=w.draws),
    "patch.PatchNullspace.nearest": lambda w: w.space.nearest(w.x, on(w, w.t))[0],
    "patch.PatchNullspace.largest": lambda w: (vit.norms(w.space.largest(w.x)), 0.01),  # local maxima
    "patch.PatchNullspace.certify_largest": lambda w: (w.space.certify_largest(w.x, on(w, w.noise * w.x))[:2], 0.01),
    "influence.read_pool": lambda w: vars(influence.read_pool(w.vit, w.many)),
    "influence.Pool.to": lambda w: vars(w.pool.to(torch.device(w.model))),
    "influence.Pool.take": lambda w: vars(w.pool.take(torch.arange(3))),
    "influence.check_noise": lambda w: influence.check_noise(on(w, w.tokens), w.pool),
    "influence.influence_of": lambda w: influence.influence_of(w.other, on(w, w.tokens), w.pool),
    "influence.noise_influence": lambda w: [
        influence.noise_influence(w.vit, w.tokens, w.pool),
        influence.noise_influence(w.vit, w.noise, w.many),
    ],
    "linearised.linearise": lambda w: linearised.linearise(w.vit, w.pool).eigenvalues[:8],
    "linearised.Linearised.filtered": lambda w: (linearised.linearise(w.vit, w.many).filtered(w.tokens), 0.01),
    "linearised.Linearised.powered": lambda w: (linearised.linearise(w.vit, w.many).powered(w.tokens, 1.0), 0.01),
    "linearised.Linearised.without": lambda w: (linearised.linearise(w.vit, w.many).without(w.tokens, 3), 0.01),
    "noise.encoder_noise": lambda w: measured(
        learned(w, held_out=w.pool, spread=True, linear=linearised.linearise(w.other, w.many))
    ),
    "noise.encoder_noise, lam": lambda w: measured(learned(w, eps=None, lam=0.3)),
    "noise.encoder_noise, norm": lambda w: measured(learned(w, eps=None, norm=3.0)),
    "noise.published": lambda w: measured(learned(w, official=True)),
    "noise.input_noise": lambda w: measured(noise.input_noise(w.vit, w.many, eps=0.2, steps=6)),
    "noise.rescaled": lambda w: measured(noise.rescaled(w.vit, w.tokens, w.pool, eps=0.2)),
    "noise.verified": lambda w: noise.verified(w.vit, w.tokens, w.pool, eps=0.2).influence,
    "certified.certified": lambda w: certified.certified(w.vit, w.tokens, w.pool, eps=1.0, scales=(0.5, 1.0)).tested,
    "files.load_adapted": lambda w: answered(w, adapter_files.load_adapted("vit_robust_lnlora", device=w.model)),
    "files.load_adapter": lambda w: carried(
        w,
        lambda path: adapter_files.save_adapter(adapted(w), path),
        lambda path: adapter_files.load_adapter(deepcopy(w.other), path),
    ),
    "inject.adapted_copy": lambda w: answered(w, adapted(w)),
    "inject.merge": lambda w: answered(w, inject.merge(adapted(w))),
    "inject.base_fingerprint": lambda w: inject.base_fingerprint(adapted(w)),
    **{
        f"attacks.attack, {name}": lambda w, name=name, eps=eps, tolerance=tolerance: fooled(
            w, attacks.attack(w.vit, w.x, w.labels, name, eps=eps), eps, tolerance
        )
        for name, eps, tolerance in ATTACKS
    },
    "attacks.attack, cw_l2": lambda w: vit.norms(attacks.attack(w.vit, w.x, w.labels, "cw_l2-5", eps=9).cpu()),
    "evaluation.evaluate": lambda w: (
        [1 + evaluation.evaluate(w.vit, w.split, attacks=["fgsm"], corruptions="fog", severities=3)["accuracy"]],
        0.07,  # one image of 16
    ),
    "gradient_masking.diagnose": lambda w: "".join(gradient_masking.diagnose(w.vit, w.x, w.labels, eps=EPS, steps=5)),
    "perturbation.in_box": lambda w: perturbation.in_box(w.x, on(w, w.t), vit.norms(w.x)),
    "perturbation.transported_logits": lambda w: [
        perturbation.transported_logits(w.vit, w.x, name) for name in ("float32", "8 bits")
    ],
    "pgd.pgd": lambda w: fooled(w, pgd.pgd(w.vit, w.x, w.labels, eps=EPS, generator=w.draws)),
    "pgd.pgd, stop_when_fooled": lambda w: fooled(w, pgd.pgd(w.vit, w.x, w.labels, eps=EPS, stop_when_fooled=True)),
    "costs.storage": lambda w: costs.storage(adapted(w)),
    "costs.memory": lambda w: [
        costs.memory(w.vit, "standard", QUICK, w.x, w.labels)[key] for key in ("parameters", "gradients", "optimizer")
    ],
    "costs.step_times": lambda w: [*costs.step_times({"a": w.vit}, "pgd_at", QUICK, w.x, w.labels, repeats=1)["name"]],
    "finetune.finetune": resumed,
    "explanations.attribute": lambda w: [
        explanations.attribute(w.vit, w.x, name) for name in explanations.ATTRIBUTIONS
    ],
    "faithfulness.rank_correlation": lambda w: faithfulness.rank_correlation(w.scores, on(w, w.x.flatten(1)[:, :36])),
    "faithfulness.top_overlap": lambda w: faithfulness.top_overlap(w.scores, on(w, w.x.flatten(1)[:, :36])),
    "faithfulness.deletion_insertion": lambda w: vars(
        faithfulness.deletion_insertion(w.vit, w.x, w.scores, target=w.labels)
    ),
    "lookalike.lookalike": lambda w: (lookalike.lookalike(w.vit, w.x, on(w, w.t), eps=0.1, steps=5), 0.05),
    "lookalike.farthest_along": lambda w: (lookalike.farthest_along(w.vit, w.x, on(w, w.x), w.t, eps=0.1), 0.01),
    "lookalike.adversarial": lambda w: (vars(lookalike.adversarial(w.vit, w.x, (w.labels + 1) % 10, steps=20)), 0.1),
    "lookalike.library_attack": lambda w: fooled(
        w,
        w.x + lookalike.library_attack(w.vit, w.x, (w.labels + 1) % 10, "PGD", eps=EPS, steps=5).noise.to(w.x),
        tolerance=0.3,
    ),
    "lookalike.without_nullspace": lambda w: lookalike.without_nullspace(w.space, w.x, on(w, w.noise * w.x)),
    "lookalike.equal_norm_controls": lambda w: lookalike.equal_norm_controls(
        w.space, w.x, on(w, w.t), on(w, w.noise * w.x), w.draws
    ),
    "manipulation.manipulate": lambda w: (
        [vit.norms(manipulation.manipulate(w.vit, w.x, name, steps=3)) for name in ("grad_cam", "saliency")],
        0.2,
    ),
    "similarity.ssim": lambda w: similarity.ssim(w.x, on(w, w.t)),
    "similarity.psnr": lambda w: similarity.psnr(w.x, on(w, w.t)),
    "watermark.watermark": lambda w: [
        watermark.watermark(w.space, w.x, on(w, w.t), norm="l2")[0],
        vit.norms(watermark.watermark(w.space, w.x, watermark.draw_logo((48, 48)), norm="l1")[0]),
    ],
    "watermark.official_noise": lambda w: watermark.official_noise(
        w.space, *(vit.patchify(part[:1], (8, 8))[0, 0] for part in (w.x, on(w, w.t))), norm="l2", gradient=True
    ),
    "watermark.encode_message": lambda w: watermark.encode_message(w.space, w.x, drawn_bits(w), key=7).noise,
    "watermark.decode_message": equal_keys,
    "watermark.message_keys": lambda w: watermark.message_keys(w.space, 16, key=7, share=0.5),
}
TOGETHER: dict[str, Case] = {  # functions of tensors that live together, as in PyTorch
    "datasets.to_pixels": lambda w: datasets.to_pixels(few().dev.images[:4], 48, w.data),
    "datasets.augmented": lambda w: datasets.augmented(w.x, (32, 32), w.draws),
    "attention.attention_weights": lambda w: attention.attention_weights(w.vit, w.x),
    "graphs.by_rows": lambda w: [graphs.by_rows(squares, w.vit, w.x[:count]) for count in (8, 3, 5, 8, 5, 3)],
    "inputs.normal": lambda w: inputs.normal(w.x),
    "predict.answers": lambda w: predict.answers(w.vit, w.x),
    "predict.feature_gap": lambda w: predict.feature_gap(w.x.flatten(1), w.t.flatten(1)),
    "predict.probability_gap": lambda w: predict.probability_gap(w.scores, 2 * w.scores),
    "classifier.full": lambda w: vit.full(w.x.half()),
    "vit.norms": lambda w: vit.norms(w.x),
    "vit.per_image": lambda w: vit.per_image(w.scores[:, 0]),
    "vit.patchify": lambda w: vit.patchify(w.x, (8, 8)),
    "vit.unpatchify": lambda w: vit.unpatchify(vit.patchify(w.x, (8, 8)), (48, 48), (8, 8)),
    "vit.ViT.encode_both": lambda w: w.vit.encode_both(w.vit.embed(w.x)),
    "vit.ViT.features": lambda w: w.vit.features(w.vit.embed(w.x) + w.tokens),
    "controls.centred": lambda w: controls.centred(w.tokens),
    "controls.spread": lambda w: controls.spread(w.tokens),
    "controls.of_norm": lambda w: controls.of_norm(w.tokens, 3.0),
    "controls.gaussian": lambda w: controls.gaussian(w.tokens, w.draws),
    "controls.permuted": lambda w: controls.permuted(w.tokens, w.draws),
    "controls.permuted_within": lambda w: controls.permuted_within(w.tokens, w.draws),
    "patch_attack.chosen_patch": lambda w: patch_attack.chosen_patch(w.vit, w.x),
    "perturbation.degraded": lambda w: [perturbation.degraded(w.x, name) for name in perturbation.DEGRADATIONS],
    "perturbation.undo_crop": lambda w: perturbation.undo_crop(w.x, 44),
    "perturbation.permuted_in_patches": lambda w: perturbation.permuted_in_patches(w.x, (8, 8), w.draws),
    "pgd.margin": lambda w: pgd.margin(w.scores[:, :10], w.labels),
    "methods.METHODS": lambda w: ({name: trained(w, name, w.vit) for name in methods.METHODS}, 0.1),
    "methods.make_noise": lambda w: (
        {kind: methods.make_noise(w.vit, few().dev, kind, QUICK, 0).norm for kind in ("random", "permuted", "zero")},
        0.05,
    ),
    "methods.make_noise, official": lambda w: measured(
        methods.make_noise(w.vit, few().dev, "learned", replace(QUICK, official=True), 0)
    ),
    "finetune.finetune, adapter": lambda w: (trained(w, "pgd_at", w.vit, adapter=ADAPTER), 0.1),
    "scratch.train": lambda w: (
        [
            record["loss"]
            for record in scratch.train(w.vit, few(), scratch.Recipe(epochs=1, batch_size=100), folder=w.folder)[1]
        ],
        0.3,
    ),
    "explanations.patch_values": lambda w: explanations.patch_values(w.x[:, 0], w.vit),
    "faithfulness.Curves.area": lambda w: faithfulness.Curves(*w.scores[:3].abs().split(1)).area("deletion"),
    "lookalike.other_class": lambda w: lookalike.other_class(w.labels),
    "manipulation.correlation": lambda w: manipulation.correlation(w.scores, w.scores.square()),
}
INSIDE = """
attention.explicit_attention attention.logits_and_attention classifier.Classifier.forward vit.ViT.forward
vit.ViT.embed vit.ViT.encode vit.evaluating box_qp. l1_lp. patch.PatchNullspace.over_patches influence.logits_at
noise.polar problem. files.save_adapter inject.inject inject.attach inject.remove layers. patch_attack.patch_attack
patch_attack.without_conflict perturbation. pgd.ascent pgd.start pgd.gradient autoattack. methods.loss_of
methods.Method.begin trainer. descent. attacks.attacked gradients. explanations. influence.Pool.parts
"""
"""Run by the cases of others: functions, or the rest of a module."""
EVERYWHERE = """
nets. weights. layernorm. attacks.check_attack corruptions. evaluation.corrupted_splits inputs.check_split vit.check_
predict.answering predict.restricted
influence.level_of inject.trained_parameters inject.trainable inject.expected_parameters watermark.draw_logo
"""
"""They read structure, files or NumPy arrays, and compute on no device."""
