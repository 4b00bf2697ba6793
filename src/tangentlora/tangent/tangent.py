"""The Tangent: what the solvers and the theory know of a network and its examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tangentlora.models.targets import Target
from tangentlora.tangent.operator import Operator

FORMAT = 3
"""Version of the store's layout and of what is in it; part of every key."""


@dataclass(frozen=True, eq=False)
class Tangent:
    """The network seen from its pretrained weights on N examples: z(δ) = f0 + Jδ, (N,K).

    If it is `centred`, J is that of the outputs less their mean over the K; f0 is what the network gives.
    `identity` is what it was made from (model, readout, data, targets, versions), as JSON would give it back;
    equal identities give equal numbers. `source` is the store it was read from or written to, if any.
    """

    f0: Float[Tensor, "N K"]
    jacobian: Operator
    targets: tuple[Target, ...]
    identity: dict[str, Any]
    source: Path | None = None

    @property
    def centred(self) -> bool:
        """Whether J is that of outputs less their mean, as for a loss that ignores a common shift."""
        return is_centred(self.identity)

    @property
    def key(self) -> str:
        """The name of this tangent in a store: a hash of its identity."""
        return key_of(self.identity)


def is_centred(identity: Mapping[str, Any]) -> bool:
    """Return whether a tangent of this identity is centred."""
    return bool(identity.get("centred", False))


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of the identity's canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
