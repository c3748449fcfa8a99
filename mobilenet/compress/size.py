"""Bytes of a network's weights on disk: dense, compressed by gzip, and in a sparse format."""

import gzip
import math
from typing import Any

import jax
import numpy as np


def sparse_bytes(array: np.ndarray) -> int:
    """Bytes of an array as one bit per element, which says whether it is 0, and the other values.

    If the dense array is smaller, its bytes count. One bit per element is smaller than indices
    above a density of about 3 %, and no kernel here has a lower density.
    """
    values = int(np.count_nonzero(array)) * array.dtype.itemsize
    return min(array.nbytes, math.ceil(array.size / 8) + values)


def sizes(variables: Any) -> dict[str, int]:
    """Bytes of all arrays of a pytree, tensor after tensor, without a container's names and shapes.

    Returns:
      `dense`; `gzip`, of the dense bytes (level 9); `sparse` (`sparse_bytes` of each array);
      `sparse_gzip`, of the sparse format's bytes.
    """
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(variables)]
    dense = b"".join(leaf.tobytes() for leaf in leaves)
    packed = b"".join(
        leaf.tobytes()
        if sparse_bytes(leaf) == leaf.nbytes
        else np.packbits(leaf != 0).tobytes() + leaf[leaf != 0].tobytes()
        for leaf in leaves
    )
    return {
        "dense": len(dense),
        "gzip": len(gzip.compress(dense, 9, mtime=0)),
        "sparse": sum(sparse_bytes(leaf) for leaf in leaves),
        "sparse_gzip": len(gzip.compress(packed, 9, mtime=0)),
    }
