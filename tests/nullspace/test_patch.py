"""The exact nullspace as a subspace: basis, projection, sampling, invisibility, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from spaces import KINDS, STD, make_vit, randn, shared_pairs, shared_space, shared_vit

from nullpaper.errors import InputError
from nullpaper.models.vit import ViT, patchify, unpatchify
from nullpaper.nullspace.patch import PatchNullspace, channel_nullspace, patch_nullspace


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def vit(kind) -> ViT:
    return shared_vit(kind)


@pytest.fixture
def space(kind) -> PatchNullspace:
    return shared_space(kind)


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return shared_pairs()


# the subspace


def test_basis_is_orthonormal_and_complete(space):
    whole = torch.cat([space.basis, space.row_basis], 1)
    torch.testing.assert_close(whole.T @ whole, torch.eye(192, dtype=torch.float64), atol=1e-12, rtol=0)
    assert space.dim == 96 and space.image_dim == 36 * 96


def test_same_subspace_as_scipy(vit, space):
    weight = vit.net.patch_embed.proj.weight.detach().double().numpy() / np.array(STD)[:, None, None]
    reference = scipy.linalg.null_space(weight.reshape(96, -1), rcond=1e-6)
    assert reference.shape[1] == space.dim
    assert scipy.linalg.subspace_angles(reference, space.basis.numpy()).max() < 1e-6


def test_rounding_of_the_weights_hides_no_dimension():
    vit = make_vit()
    weight = vit.net.patch_embed.proj.weight.data
    weight[1:4] = torch.einsum("ij,jchw->ichw", randn(3, 5).float(), weight[4:9])
    assert patch_nullspace(vit).dim == 192 - 93
    assert patch_nullspace(vit, rtol=0.0).dim == 96


def test_projection_is_idempotent_self_adjoint_and_invisible(vit, space):
    a, b = randn(2, 3, 48, 48), randn(2, 3, 48, 48, seed=1)
    p, q = space.project(a), space.project(b)
    torch.testing.assert_close(space.project(p), p, atol=1e-12, rtol=0)
    torch.testing.assert_close((p * b).sum(), (a * q).sum())
    assert torch.linalg.vector_norm(p) < torch.linalg.vector_norm(a)
    tokens = patchify(p, space.patch_size) @ vit.patch_matrix.double().T
    assert tokens.abs().max() < 1e-5 * (patchify(a, space.patch_size) @ vit.patch_matrix.double().T).abs().max()


def test_everything_commutes_with_permuting_patches(space, pairs):
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))

    def shuffle(images: torch.Tensor) -> torch.Tensor:
        return unpatchify(patchify(images, (8, 8))[:, order], (48, 48), (8, 8))

    images, targets = (batch[2:3] for batch in pairs)
    torch.testing.assert_close(space.project(shuffle(images)), shuffle(space.project(images)))
    plain, moved = space.nearest(images, targets)[0], space.nearest(shuffle(images), shuffle(targets))[0]
    torch.testing.assert_close(moved, shuffle(plain), atol=2e-4, rtol=0)


def test_channel_nullspace_is_contained_in_the_joint_one():
    for width, expected in ((48, 3 * 16), (96, 0)):
        vit = make_vit(width)
        joint, control = patch_nullspace(vit), channel_nullspace(vit)
        assert control.dim == expected and joint.dim == 192 - width
        noise = randn(1, 3, 48, 48)
        inside = control.project(noise)
        assert (inside.abs().max() > 0) == (control.dim > 0)
        torch.testing.assert_close(joint.project(inside), inside, atol=1e-9, rtol=0)
        assert not torch.allclose(joint.project(noise), inside)


def test_encoder_ignores_one_dimension_more():
    vit = make_vit(width=192).double()
    assert patch_nullspace(vit).dim == 0
    space = patch_nullspace(vit, through="encoder")
    assert space.dim == 1 and space.image_dim == 36
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = space.project(30 * randn(*images.shape))
    assert (vit.embed(images + noise) - vit.embed(images)).abs().max() > 0.1
    torch.testing.assert_close(vit(images + noise), vit(images), atol=1e-9, rtol=0)
    assert patch_nullspace(make_vit(width=252), through="encoder").dim == 0


# noise


def test_sample_has_its_norm_and_follows_its_generator(space):
    shape, norms = (3, 3, 48, 48), torch.tensor([1.0, 5.0, 0.0])
    first, again, other = (
        space.sample(shape, norm=norms, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), norms)


def test_sample_is_isotropic(space):
    noise = space.sample((40, 3, 48, 48), generator=torch.Generator().manual_seed(0)).double()
    weights = (patchify(noise, (8, 8)) @ space.basis).flatten(0, 1)
    covariance = weights.T @ weights / len(weights) * space.image_dim
    assert (covariance - torch.eye(space.dim, dtype=torch.float64)).abs().max() < 6 / len(weights) ** 0.5


@pytest.mark.parametrize("method", ["sample", "nearest", "largest"])
def test_noise_leaves_the_logits_unchanged(vit, space, pairs, method):
    images, targets = pairs
    if method == "sample":
        noise = space.sample(images.shape, norm=20.0, generator=torch.Generator().manual_seed(0))
    else:
        noise = space.nearest(images, targets)[0] if method == "nearest" else space.largest(images, steps=3)
    assert noise.dtype == images.dtype and noise.flatten(1).norm(dim=1).min() > 1
    wrong = noise.flip(-1)
    with torch.no_grad():
        clean = vit(images)
        changed, control = (vit(images + noise) - clean).abs().max(), (vit(images + wrong) - clean).abs().max()
    assert changed < 1e-4 and control > 100 * changed


# bad input


def bad_calls(space: PatchNullspace, images: torch.Tensor) -> list[tuple]:
    nan, shifted = images.clone(), images - 0.5
    nan[0, 0, 0, 0] = torch.nan
    return [
        (lambda: space.nearest(shifted, images), r"not \[0, 1\]"),
        (lambda: space.largest(images[:, :2]), "takes"),
        (lambda: space.largest(images[..., :40]), "resize"),
        (lambda: space.nearest(nan, images), "NaN"),
        (lambda: space.nearest(images, nan), "targets"),
        (lambda: space.nearest(images, images[:1, :, :8]), "targets are"),
        (lambda: space.nearest(images, (images * 255).byte()), "targets"),
        (lambda: space.project(images[0]), "takes"),
        (lambda: space.sample((2, 3, 32, 32)), "needs"),
        (lambda: space.sample(images.shape, norm=-1.0), "norm"),
        (lambda: space.sample(images.shape, norm=torch.ones(5)), "one for each image"),
        (lambda: space.largest(images, steps=-1), "steps"),
        (lambda: space.certify_largest(images, images[:, :, :8]), "noise"),
    ]


def test_bad_images_are_one_sentence(pairs):
    for call, message in bad_calls(shared_space("random"), pairs[0][:2]):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_bad_options_are_one_sentence():
    with pytest.raises(InputError, match="Did you mean 'encoder'"):
        patch_nullspace(shared_vit("random"), through="encoded")
    with pytest.raises(InputError, match="rtol"):
        patch_nullspace(shared_vit("random"), rtol=1.5)
    with pytest.raises(InputError, match="empty"):
        patch_nullspace(make_vit(width=192)).sample((1, 3, 48, 48))
    with pytest.raises(InputError, match="does not ignore"):
        patch_nullspace(make_vit(norm_layer="rmsnorm"), through="encoder")
