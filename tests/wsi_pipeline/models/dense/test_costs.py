"""The choice between regions and single patches, in the cases that are clear."""

import torch

from wsi_pipeline.models.dense.costs import (
    cheaper_by_patches,
    count_block_products,
    count_patch_products,
)
from wsi_pipeline.models.dense.weights import transform_weights
from wsi_pipeline.models.patchnet import Subnet


def weights_of(m):
    net = Subnet(m, filters=2)
    convolutions = [layer for layer in net.convolutions if isinstance(layer, torch.nn.Conv2d)]
    return transform_weights(convolutions, net.readout_weight, net.readout_bias, "toom-cook")


def test_products_of_a_patch_are_nine_per_pixel_and_layer():
    assert count_patch_products(weights_of(15)) == 12150


def test_a_huge_block_costs_what_the_regions_of_one_patch_cost():
    corners = 4 * (2**2 + 4**2 + 5**2 + 6**2 + 7**2 + 9**2)
    edges, interior = 4 * 3 * (2 + 4 + 5 + 6 + 7 + 9), 9 * 6
    side = 10**6
    per_patch = count_block_products(weights_of(15), side, side) / side**2
    assert abs(per_patch - (corners + edges + interior)) < 1


def test_dense_maps_go_by_regions_and_sparse_ones_patch_by_patch():
    weights = weights_of(15)
    assert not cheaper_by_patches(weights, 32, 32, 32 * 32)
    assert cheaper_by_patches(weights, 32, 32, 4)
    assert cheaper_by_patches(weights, 1, 1, 1)


def test_compiled_regions_are_worth_more():
    weights = weights_of(15)
    assert cheaper_by_patches(weights, 32, 32, 16 * 16)
    assert not cheaper_by_patches(weights, 32, 32, 16 * 16, compiled=True)
