"""Learned noise and its controls on the shipped ViT and real CIFAR-10 images: constraint, norms, seeds, errors."""

from __future__ import annotations

import pytest
import torch
from noises import EPS, batches, learned, pools, tiny_cnn, vit

from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.synthesis.controls import centred, gaussian, of_norm, permuted, permuted_within
from nullpaper.synthesis.influence import influence_of, noise_influence, read_pool
from nullpaper.synthesis.noise import encoder_noise, input_noise, rescaled, verified
from nullpaper.synthesis.problem import pose, to_boundary

CONTROLS = {"gaussian": gaussian, "permuted": permuted, "permuted_within": permuted_within}


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the epsilon form


def test_noise_lies_near_the_boundary_on_images_that_were_never_used():
    noise, (_, held_out) = learned(), pools()
    gaps = influence_of(vit(), noise.value, held_out)
    assert noise.influence.n == len(held_out) and noise.influence.value == pytest.approx(gaps.mean().item(), rel=1e-5)
    assert noise.reached == (noise.influence.high <= EPS)
    assert noise.value.shape == (1, 36, 96) and noise.influence.value > EPS / 10
    assert influence_of(vit(), 3 * noise.value, held_out).mean() > EPS


def test_learned_noise_is_longer_than_a_random_one_rescaled_from_any_length():
    pool, held_out = pools()
    direction = torch.randn(1, 36, 96, generator=drawn())
    short, long = (rescaled(vit(), s * direction, pool, held_out=held_out, eps=EPS).norm for s in (0.01, 100.0))
    assert short == pytest.approx(long, rel=0.05) and learned().norm > 1.15 * long


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
def test_a_scale_is_within_eps_where_it_was_read_off_and_hardly_longer_is_not(length):
    problem = pose(vit(), pools()[0], level="encoder", eps=EPS, margin=False)
    noise = to_boundary(problem, length * torch.randn(1, 36, 96, generator=drawn()))
    within, beyond = (influence_of(vit(), scale * noise, problem.calibration).mean() for scale in (1, 1.02))
    assert within <= EPS < beyond


def test_the_radius_grows_below_eps_and_shrinks_above():
    for lim, grows in ((0.01, True), (20.0, False)):
        history = encoder_noise(vit(), pools()[0], eps=0.05, lim=lim, steps=4).history
        assert (history[-1]["norm"] > history[0]["norm"]) == grows


# token-centring


def test_noise_is_centred_and_without_centring_the_norm_is_unbounded():
    noise, (_, held_out) = learned(), pools()
    torch.testing.assert_close(noise.value.mean(-1), torch.zeros(1, 36), atol=1e-5, rtol=0)
    free = noise.value + 1000.0  # the LayerNorm direction, 1000 in every token and dimension
    assert free.norm() > 100 * noise.norm
    torch.testing.assert_close(centred(free), noise.value, atol=1e-2, rtol=0)
    change = influence_of(vit(), free, held_out).mean() - noise.influence.value
    assert abs(change.item()) < 1e-3
    pure = torch.full_like(noise.value, 1000.0)
    assert influence_of(vit(), pure, held_out).max() < 1e-3


# the norm per token


def test_one_token_can_be_lost_at_any_norm_so_that_only_spread_noise_has_a_largest():
    random = torch.randn(96, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(1, 36, 96)
    one[:, 0] = random
    gaps = [influence_of(vit(), of_norm(centred(one), norm), pools()[1]).mean() for norm in (1e2, 1e4, 1e6)]
    assert max(gaps) < 0.03 and influence_of(vit(), 100.0 * learned().value, pools()[1]).mean() > 0.1
    torch.testing.assert_close(gaps[1], gaps[2], atol=1e-3, rtol=0)  # a limit, not growth


def test_spread_noise_has_equal_tokens_and_keeps_its_constraint():
    noise = learned(spread=True)
    tokens = noise.value.norm(dim=-1)
    assert tokens.max() < 1.001 * tokens.min() and noise.value.mean(-1).abs().max() < 1e-4
    free = learned().value.norm(dim=-1)
    assert free.max() > 1.05 * free.min()


def test_the_norm_form_keeps_its_norm_and_lowers_the_influence():
    noise = learned(norm=20.0)
    random = gaussian(noise.value, drawn())
    assert noise.norm == pytest.approx(20.0, rel=1e-4) == random.norm().item() and noise.reached is None
    assert noise.influence.value < influence_of(vit(), random, pools()[1]).mean()


def test_permuting_within_tokens_keeps_each_tokens_entries():
    control = permuted_within(learned().value, drawn())
    torch.testing.assert_close(control.sort(-1)[0], learned().value.sort(-1)[0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(control, learned().value)


# the lambda form


def test_lambda_trades_agreement_for_norm():
    small, large = learned(lam=0.05), learned(lam=0.5)
    assert small.reached is None and large.norm > 1.5 * small.norm
    influence = [noise_influence(vit(), noise, pools()[1])["mse_logits"].value for noise in (small, large)]
    assert influence[0] < influence[1]
    assert abs(small.value.mean(-1)).max() < 1e-5
    control = permuted(large.value, drawn())  # which destroys it
    assert influence_of(vit(), control, pools()[1]).mean() > 1.5 * large.influence.value


# controls


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_keep_norm_and_centring_and_follow_their_generator(name):
    noise = learned().value
    control, again, other = (CONTROLS[name](noise, drawn(seed)) for seed in (1, 1, 2))
    assert control.shape == noise.shape and torch.equal(control, again) and not torch.equal(control, other)
    assert control.mean(-1).abs().max() < 1e-5 * control.norm()
    assert control.norm().item() == pytest.approx(learned().norm, rel=1e-5)


def test_verification_is_that_of_the_learned_noise():
    pool, held_out = pools()
    again = verified(vit(), learned(), pool, held_out=held_out, eps=EPS)
    assert (again.influence, again.reached) == (learned().influence, learned().reached)
    zero = verified(vit(), torch.zeros(1, 36, 96), pool, eps=EPS)
    assert zero.influence.value < 1e-9 and zero.reached and zero.influence.n == 12  # a quarter, set aside


# the published procedure


def test_official_tests_before_it_steps():
    pool, held_out = pools()
    options = dict(held_out=held_out, eps=1.99, lim=0.5, official=True)
    noise = encoder_noise(vit(), pool, **options)
    generator = torch.Generator().manual_seed(0)
    start = (torch.rand(1, 36, 96, generator=generator) * 2 - 1) * 0.5
    assert len(noise.history) == 1 and torch.equal(noise.value, start)
    assert noise.value.norm() > noise.norm  # not centred, so its raw norm holds a free part


def test_official_makes_three_rounds_and_stops_on_one_batch():
    pool, held_out = pools()
    noise = encoder_noise(vit(), pool, held_out=held_out, eps=1e-6, lim=3.0, official=True)
    assert len(noise.history) == 3 * 3 and noise.reached is False  # of 36 images: the others set a scale
    longer = encoder_noise(vit(), pool, held_out=held_out, eps=1e-6, lim=3.0, official=True, steps=14)
    assert len(longer.history) == 14 and longer.history[2]["norm"] == pytest.approx(noise.history[2]["norm"], rel=1e-3)
    target = noise.history[-1]["influence"] * 1.01
    noise = encoder_noise(vit(), pool, held_out=held_out, eps=target, lim=3.0, official=True)
    assert noise.history[-1]["influence"] < target <= min([r["influence"] for r in noise.history[:-1]], default=2.0)
    noise = encoder_noise(vit(), pool, held_out=held_out, eps=target, lim=3.0, official=True, early_stop=False)
    assert len(noise.history) == 3 * 3


# input level


def test_input_noise_serves_any_classifier():
    for model in (tiny_cnn(), vit()):
        noise = input_noise(model, batches(8), eps=EPS, steps=1)
        assert noise.value.shape == (1, 3, 48, 48) and noise.influence.n == 2
        metrics = noise_influence(model, noise, batches(8))
        assert ("mse_features" in metrics) == (model is vit())
        control = permuted(noise.value, drawn())
        assert control.norm().item() == pytest.approx(noise.norm, rel=1e-5)
        torch.testing.assert_close(control.flatten().sort()[0], noise.value.flatten().sort()[0])


# metrics


def test_metrics_agree_with_their_definitions():
    noise, (_, held_out) = learned(lam=0.5), pools()
    metrics = noise_influence(vit(), noise, held_out)
    with torch.no_grad():
        noisy, clean = vit().encode(held_out.inputs + noise.value), vit().encode(held_out.inputs)
        features = vit().features(held_out.inputs + noise.value) - vit().features(held_out.inputs)
    p, q, top = noisy.softmax(-1), clean.softmax(-1), clean.argmax(-1)
    rows = torch.arange(len(top))
    expected = {
        "mse_features": features.square().sum(-1).mean(),
        "mse_logits": (noisy - clean).square().sum(-1).mean(),
        "mse_probs": (p - q).square().sum(-1).mean(),
        "abs_confidence": (p - q)[rows, top].abs().mean(),
        "mse_confidence": (p - q)[rows, top].square().mean(),
        "match": (noisy.argmax(-1) == top).float().mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].value == pytest.approx(value.item(), rel=1e-4, abs=1e-6) and metrics[name].n == 64
        assert metrics[name].low <= metrics[name].value <= metrics[name].high


# the model, the seed, the caller


def test_same_seed_same_noise_and_the_model_is_left_alone():
    model = load_vit(SHIPPED)
    frozen, kept = model.net.head.weight, model.net.head.bias
    frozen.requires_grad_(False)
    kept.grad = torch.ones_like(kept)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, second, other = (encoder_noise(model, pools()[0], eps=EPS, steps=2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.value, second.value) and not torch.equal(first.value, other.value)
    assert first.history == second.history and not first.value.requires_grad
    assert not model.training and all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter is not frozen), name
        assert (parameter.grad is None) == (parameter is not kept), name
    assert torch.equal(kept.grad, torch.ones_like(kept))


def test_labels_and_pools_are_optional():
    bare = [images for images, _ in batches(8)]
    sources = (batches(8), bare, read_pool(vit(), bare))
    labelled, unlabelled, pooled = (encoder_noise(vit(), source, eps=EPS, steps=1).value for source in sources)
    assert torch.equal(labelled, unlabelled) and torch.equal(labelled, pooled)
