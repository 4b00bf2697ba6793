"""From "query and value of the last layer" to weight matrices, by module type and full name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.linear import is_conv1d, is_plain

# The names that model families give to the projections of attention, as dotted ends of full names.
_ROLES = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
    "output": ("attention.output.dense", "attn.c_proj", "o_proj", "out_proj", "out_lin", "o"),
}
_FUSED_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class Target:
    """One adapted weight matrix W_t (m,n): the whole weight of a module, or a range of its output rows.

    `name` is the key in `Blocks`. It equals `module`, the module's full name, unless the weight is fused:
    then it is `module:role` (for GPT-2, `transformer.h.11.attn.c_attn:query`) and `rows` is the half-open
    range of outputs. `transposed` says that the module stores its weight as (in, out), as GPT-2's Conv1D
    does.
    """

    name: str
    module: str
    shape: tuple[int, int]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def weight(self, module: nn.Module) -> Tensor:
        """Return this target's part of the weight, an (m,n) view: writing into it writes into the network."""
        stored: Tensor = module.get_submodule(self.module).get_parameter("weight")
        weight = stored.T if self.transposed else stored
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]


def find_targets(
    module: nn.Module,
    modules: Sequence[str] = ("query", "value"),
    layers: str = "last",
    *,
    shared: bool = False,
) -> list[Target]:
    """Return the weight matrices to adapt, in the network's order and with query before key before value.

    Each of `modules` is a role (query, key, value, output: every family's own name for it is known), a full
    name, or a dotted end of full names as in PEFT (`q_proj`, `attention.output.dense`); a string is read as a
    comma-separated list. `layers` is `last`, `all` or indices such as `0,5` or `-1`, counted in each stack of
    layers on its own. It does not restrict what is given by its full name or stands outside all layers.
    With `shared` a weight may be another module's too, as that of a tied `lm_head`: the update is then one
    beside the module, as `attached` adds it, and none of the weight.

    Raises `InputError` when a name or a layer matches nothing, or when a weight is not that of a
    floating-point `Linear` or `Conv1D`, or of a class made from one that computes x Wᵀ + b (quantised ones
    are refused), is shared with another module, or is chosen both whole and in part.
    """
    selectors = [name.strip() for name in (modules.split(",") if isinstance(modules, str) else modules)]
    candidates, wanted = _candidates(module), _parse_layers(layers)
    chosen: dict[_Candidate, None] = {}
    for selector in selectors:
        named = [c for c in candidates if c.is_called(selector)]
        if not named:
            raise InputError(_unknown(selector, candidates))
        free = [c for c in named if c.layer is None or c.address == selector]
        layered = [c for c in named if c not in free]
        chosen.update(dict.fromkeys(free + _in_layers(layered, wanted, layers)))
    if not chosen:
        raise InputError("got no module to adapt, expected at least one; name one, for example query.")
    _refuse_shared(module, chosen, allowed=shared)
    position = {c.module: i for i, c in enumerate(candidates)}
    parents = {c.module: position.get(c.module.rpartition(".")[0], 0) for c in chosen}
    return [c.target() for c in sorted(chosen, key=lambda c: (parents[c.module], c.rank, position[c.module]))]


@dataclass(frozen=True)
class _Candidate:
    """A module, or a third of GPT-2's fused attention, that a user may name."""

    address: str
    module: str
    child: nn.Module
    stack: str
    layer: int | None

    @property
    def role(self) -> str | None:
        """The part that a projection inside a layer plays in attention, None for every other module."""
        if self.layer is None:
            return None
        if ":" in self.address:
            return self.address.split(":")[1]
        for role, names in _ROLES.items():
            if any(self.address.endswith(f".{name}") for name in names):
                return role
        return None

    @property
    def rank(self) -> int:
        return _FUSED_ROLES.index(self.role) if self.role in _FUSED_ROLES else len(_FUSED_ROLES)

    @property
    def adaptable(self) -> bool:
        return is_plain(self.child)

    def is_called(self, selector: str) -> bool:
        """Say whether the selector is this one's full name, its role, or a dotted end that is not a role."""
        ends = selector not in _ROLES and self.address.endswith(f".{selector}")
        return self.address == selector or self.role == selector or ends

    def target(self) -> Target:
        if not self.adaptable:
            raise InputError(
                f"got {self.module}, which is of type {type(self.child).__name__}, expected a floating-point "
                "Linear or Conv1D, or a class made from one that computes x Wᵀ + b; name such a module, and "
                "load the network without quantisation or adapters."
            )
        transposed = is_conv1d(self.child)
        weight = self.child.get_parameter("weight")
        m, n = reversed(weight.shape) if transposed else weight.shape
        if ":" not in self.address:
            return Target(self.address, self.module, (m, n), transposed=transposed)
        third = m // len(_FUSED_ROLES)
        rows = (self.rank * third, (self.rank + 1) * third)
        return Target(self.address, self.module, (third, n), rows, transposed)


def _candidates(module: nn.Module) -> list[_Candidate]:
    found = []
    for name, child in module.named_modules(remove_duplicate=False):
        if not name:
            continue
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        layer = None if index is None else int(parts[index])
        addresses = [name]
        if parts[-1] == "c_attn" and is_conv1d(child):
            n, m = child.get_parameter("weight").shape
            if m == len(_FUSED_ROLES) * n:
                addresses += [f"{name}:{role}" for role in _FUSED_ROLES]
        found += [_Candidate(a, name, child, ".".join(parts[:index]), layer) for a in addresses]
    return found


def _parse_layers(layers: str) -> frozenset[int] | None:
    """Return the wanted indices, None for all of them."""
    if layers in ("last", "all"):
        return frozenset({-1}) if layers == "last" else None
    try:
        return frozenset(int(index) for index in layers.split(","))
    except ValueError as error:
        raise InputError(
            f"got layers {layers!r}, expected last, all or comma-separated indices; write for example 0,5."
        ) from error


def _in_layers(
    candidates: Sequence[_Candidate], wanted: frozenset[int] | None, asked: str
) -> list[_Candidate]:
    """Return those in the wanted layers, where negative indices count from the end of each stack."""
    if wanted is None or not candidates:
        return list(candidates)
    depth: dict[str, int] = {}
    for c in candidates:
        depth[c.stack] = max(depth.get(c.stack, 0), 1 + (c.layer or 0))
    hits = {c: wanted & {c.layer or 0, (c.layer or 0) - depth[c.stack]} for c in candidates}
    missing = wanted.difference(*hits.values())
    if missing:
        stacks = ", ".join(f"{stack} has {count}" for stack, count in depth.items())
        raise InputError(
            f"got layers {asked!r}, expected layers that exist ({stacks}); use last, all or smaller ones."
        )
    return [c for c in candidates if hits[c]]


def _refuse_shared(module: nn.Module, chosen: Iterable[_Candidate], *, allowed: bool) -> None:
    """Refuse weights that two of the chosen targets, or unless `allowed` two modules, would both adapt."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    whole = {c.module for c in chosen if c.address == c.module}
    for c in chosen:
        if c.address != c.module and c.module in whole:
            raise InputError(
                f"got {c.module} both whole and in part, expected each weight once; name the whole or parts."
            )
        for parameter in () if allowed else c.child.parameters(recurse=False):
            if len(names := owners[id(parameter)]) > 1:
                raise InputError(
                    f"got {c.module}, whose weight is shared ({' = '.join(names)}), expected a weight that "
                    "one module uses; choose another module."
                )


def _unknown(selector: str, candidates: Sequence[_Candidate]) -> str:
    adaptable = [c for c in candidates if c.adaptable]
    names = sorted({c.address.split(".")[-1] for c in adaptable})
    roles = [role for role in _ROLES if any(c.role == role for c in adaptable)]
    return (
        f"got the module name {selector!r}, expected a role ({', '.join(roles) or 'this network has none'}), "
        f"a full name, or the end of one ({', '.join(names)}); name one of these."
    )
