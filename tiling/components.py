"""Connected components of a graph, without scipy, whose import takes a quarter of a second."""

import numpy as np
from numpy.typing import NDArray


def connect(n: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the members of each component of a graph the number of its first member.

    Parameters
    ----------
    n : int
        Members, numbered from 0.
    one, other : (n_pairs,) int
        Pairs of members that are connected, in any order.

    Returns
    -------
    first : (n,) int64

    Notes
    -----
    Each round hooks the root of every pair to the lower root, then points every member to its root
    [1]_: the rounds grow with the logarithm of the number of members.

    References
    ----------
    .. [1] Y. Shiloach, U. Vishkin, "An O(log n) parallel connectivity algorithm", Journal of
       Algorithms 3 (1982) 57.
    """
    root = np.arange(n)
    while True:
        first, second = root[one], root[other]
        apart = first != second
        if not apart.any():
            return root
        one, other, first, second = one[apart], other[apart], first[apart], second[apart]
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root = above
