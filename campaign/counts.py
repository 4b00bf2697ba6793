"""Count the independent outputs of a problem from its dense, row-normalised Jacobian."""

from __future__ import annotations

import numpy as np

from extended import Raw, owners

_ZERO, _SURE = 1e-12, 1e-6
MOST = 200  # outputs above which nothing is counted


def independent_outputs(raw: Raw) -> int | None:
    """Return the rank c of the contrasted Jacobian, or None where it is not clear cut.

    Every row of it is scaled to norm 1, which changes no rank. It is clear cut where no singular value lies
    between 1e-12 and 1e-6 of the largest.
    """
    n, k = raw.f0.shape
    if n * k > MOST or sum(x.g.shape[2] * x.x.shape[1] for x in raw.layers.values()) > 20_000:
        return None
    contrast = np.eye(k) - np.full((k, k), 1 / k) if raw.loss == "cross_entropy" else np.eye(k)
    if raw.loss == "cross_entropy":
        contrast = np.linalg.svd(contrast)[2][: k - 1]
    blocks = []
    for layer in raw.layers.values():
        g = np.einsum("ck,rkm->rcm", contrast.astype(np.longdouble), layer.g.astype(np.longdouble))
        dense = np.zeros((n, len(contrast), g.shape[2], layer.x.shape[1]), np.longdouble)
        np.add.at(dense, owners(layer), g[:, :, :, None] * layer.x.astype(np.longdouble)[:, None, None, :])
        blocks.append(dense.reshape(n * len(contrast), -1))
    rows = np.concatenate(blocks, axis=1)
    sizes = np.abs(rows).max(1)
    if not sizes.any():
        return 0
    rows = rows[sizes > 0] / sizes[sizes > 0][:, None]
    rows = rows / np.sqrt((rows * rows).sum(1))[:, None]
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    values = values / values[0]
    if ((values > _ZERO) & (values < _SURE)).any():
        return None
    return int((values >= _SURE).sum())
