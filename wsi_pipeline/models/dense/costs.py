"""Which way is the cheaper for a block: all its patches by regions, or only some, one by one."""

from wsi_pipeline.models.dense.weights import DenseWeights

# Share of the speed of a plain convolution at which the products by regions are made, the additions
# between them included, in plain torch and compiled (measured, one core, 64 filters, m = 15 to 31:
# 0.3 to 0.5, 0.55 to 0.65; docs/dense_patchnet.md).
EFFICIENCY, COMPILED_EFFICIENCY = 0.4, 0.6
# The same of patches one by one, by tiles.
TILE_EFFICIENCY = 0.75

TILES = (4, 5, 6)  # outputs of a tile, each way; larger ones round more than 1e-5


def best_tile(m: int) -> int:
    """Return the tile with which a patch takes the fewest products.

    Examples
    --------
    >>> best_tile(17), best_tile(15)
    (6, 5)
    """
    return min(TILES, key=lambda tile: tile_products(m, tile))


def tile_products(m: int, tile: int | None = None) -> int:
    """Count the filters x filters products of one layer of a patch, by tiles.

    Examples
    --------
    >>> tile_products(17), 9 * 17**2
    (576, 2601)
    """
    tile = best_tile(m) if tile is None else tile
    return int(-(-m // tile) * (tile + 2)) ** 2


def count_patch_products(weights: DenseWeights) -> int:
    """Count the filters x filters products of one patch by itself, after the first layer."""
    layers = len(weights.split) + len(weights.tail) - 1
    return 9 * weights.m**2 * layers


def count_block_products(weights: DenseWeights, h: int, w: int) -> int:
    """Count the filters x filters products of a block of h x w patches by regions."""
    m, total = weights.m, 9 * weights.m**2 * len(weights.tail) * h * w
    for k, layer in enumerate(weights.split[1:], 2):
        assert layer.scheme is not None  # only the first layer has none
        products, wider = layer.scheme.products, m - 2 * k + 1
        total += 4 * products**2 * h * w
        total += 6 * products * (h * (w + wider) + w * (h + wider))
        total += 9 * (h + wider) * (w + wider)
    return total


def cheaper_by_patches(
    weights: DenseWeights,
    h: int,
    w: int,
    patches: int,
    *,
    compiled: bool = False,
    fast: int | None = None,
) -> bool:
    """Whether this many patches cost less one by one than all h x w by regions.

    `fast`: products of one layer of a patch, where not those of the definition.
    """
    one_by_one = float(patches * count_patch_products(weights))
    if fast is not None:
        one_by_one *= fast / (9 * weights.m**2) / TILE_EFFICIENCY
    # Where layers are left to compute patch by patch, nothing is compiled.
    efficiency = COMPILED_EFFICIENCY if compiled and not weights.tail else EFFICIENCY
    return one_by_one < count_block_products(weights, h, w) / efficiency
