"""An adapter to continue from: its layers are the targets, its factors the start."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tangentlora.adapters import Adapter, fitted, saved_modules, with_saved
from tangentlora.blocks import Factors
from tangentlora.models.network import Network
from tangentlora.models.targets import Target, find_targets


@dataclass(frozen=True, eq=False)
class Continued:
    """The network with the adapter's whole weights in it for good, and what a solver begins with."""

    network: Network
    targets: tuple[Target, ...]
    start: Factors | None = None
    saved: dict[str, Tensor] = field(default_factory=dict)


def continue_from(adapter: Adapter, network: Network) -> Continued:
    """Put an adapter on this network; W becomes the base that its δ is measured against.

    The problem stays the one linearised at W: the adapter says which layers, where to begin, and which whole
    weights (modules to save) W holds. Raises InputError as `fitted`, `find_targets`,
    `with_saved` and `saved_modules` do.
    """
    fit = fitted(adapter, network.module)
    # Here updates are added to weights, which a tied one would carry elsewhere too.
    find_targets(network.module, [target.module for target in fit.targets], "all")
    saved = fit.adapter.saved
    saved_modules(network.module, saved, tuple(target.module for target in fit.targets))
    with with_saved(network, fit.adapter) as base:
        pass  # which refuses a reader that remembers what was replaced, and knows the new fingerprint
    network.module.load_state_dict(saved, strict=False)
    return Continued(base, fit.targets, fit.factors, saved)
