"""Appendix A of paper 1: what PatchNet's loss converges to (docs/convergence.md).

Class 0 is a black image, class 1 the same with a white square. Of class 1's patches a are black
and b white. Then p0, the probability of a black patch, goes to (a - b) / 2a, or 0 where a <= b;
that of a white one goes to 1, and so the image's to 1/2 where a > b.
"""

import pytest
import torch
from torch.nn import functional as F

from wsi_pipeline.models.patchnet import PatchNet, PrecisionPatchNet


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def toy_images(side, square):
    """A black image, and one with a white square in its upper left corner: (2, 3, side, side)."""
    images = torch.zeros(2, 3, side, side)
    images[1, :, :square, :square] = 1
    return images


def train(net, images, *, steps, lr):
    """Both images per step, as in the appendix; returns the loss of each step."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net.loss(images, torch.tensor([0.0, 1.0]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def reached(net, images):
    """p0, p1 and the probability of the class-1 image."""
    with torch.no_grad():
        patches = net.patch_logits(images).sigmoid()
    return patches[1, -1].item(), patches[1, 0].item(), patches[1].mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("r", "target"), [(1, 7 / 15), (2, 1 / 3), (3, 0.0)])
def test_a_trained_net_scores_black_patches_as_the_analysis_predicts(r, target):
    images = toy_images(20, 5 * r)
    a, b = 16 - r * r, r * r
    net = PatchNet(m=5, stride=5, filters=16)
    train(net, images, steps=300, lr=1e-3)
    p0, p1, image = reached(net, images)

    assert p1 > 0.97
    if a > b:
        assert abs(p0 - target) < 0.01
        assert abs(p0 - (a - b * p1) / (2 * a)) < 0.005  # the optimum for the p1 reached
        assert abs(image - 0.5) < 0.005
    else:
        assert p0 < 0.02


def test_precision_patchnet_trains_alike_where_all_normal_patches_are_equal():
    images = toy_images(20, 10)
    plain, precise = (kind(m=5, stride=5, filters=8) for kind in (PatchNet, PrecisionPatchNet))
    precise.load_state_dict(plain.state_dict())
    losses = [train(net, images, steps=20, lr=1e-3) for net in (plain, precise)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def train_on_distinct_patches(net, *, steps, lr):
    """The paper's images, 128 px with a square of 64; Q of the distinct patches, black to white.

    Equal patches are computed once and counted as often as they come, which changes nothing.
    Patches that are partly white count as white.
    """
    patches = net.cut(toy_images(128, 64))
    distinct, which = patches.flatten(2).flatten(0, 1).unique(dim=0, return_inverse=True)
    share = torch.stack([row.bincount(minlength=len(distinct)) for row in which.view(2, -1)])
    log_share = (share / patches.shape[1]).log()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        z = net.subnet(distinct.view(-1, 3, 17, 17))
        log_p = torch.logsumexp(F.logsigmoid(z) + log_share[1], dim=0)
        log_not_p = torch.logsumexp(F.logsigmoid(-z) + log_share[0], dim=0)
        (-log_p - log_not_p).backward()
        optimizer.step()
    return z.detach().sigmoid()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "target"), [("ceil", 32 / 96), ("floor", 17 / 66), ("center", 14 / 78)]
)
def test_the_papers_own_toy_experiment_ends_at_one_third(grid, target):
    """64 filters, 128 px, m = s = 17: only the grid that covers every pixel gives .333."""
    net = PatchNet(m=17, stride=17, grid=grid)
    black, *_, white = train_on_distinct_patches(net, steps=200, lr=1e-3)
    assert abs(black.item() - target) < 0.005
    assert white > 0.99


@pytest.mark.slow
def test_the_papers_own_rate_gets_there_too():
    """Adam, 5e-5: .333 and .982 are the paper's numbers."""
    net = PatchNet(m=17, stride=17)
    black, *_, white = train_on_distinct_patches(net, steps=400, lr=5e-5)
    assert abs(black.item() - 1 / 3) < 0.01
    assert white > 0.982


@pytest.mark.slow
def test_the_map_of_the_trained_net_shows_the_square_widened_by_half_a_patch():
    """Every patch that touches a white pixel lights up: (64 + 8)^2 of 128^2 pixels."""
    net = PatchNet(m=17, stride=17)
    train_on_distinct_patches(net, steps=100, lr=1e-3)
    heatmap, _ = net.dense_map(toy_images(128, 64)[1])
    black = heatmap[80:, 80:]
    assert black.max() - black.min() < 1e-5
    assert abs(black[0, 0].item() - 1 / 3) < 0.01
    assert heatmap[32, 32] > 0.99
    assert abs((heatmap > 0.9).double().mean().item() - 72**2 / 128**2) < 0.01
