"""Pretrained networks and what is read from them: the only door to transformers."""

from tangentlora.models.causal import CausalPrompt
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.completion import Completion
from tangentlora.models.load import load_network, load_sampling_rate, network_from_module
from tangentlora.models.network import Batch, Features, Network, Reader
from tangentlora.models.probe import fit_linear_probe
from tangentlora.models.prompt import MaskPrompt
from tangentlora.models.prototypes import Prototypes
from tangentlora.models.readouts import Readout
from tangentlora.models.targets import Target, find_targets

__all__ = [
    "Batch",
    "CausalPrompt",
    "ClassificationHead",
    "Completion",
    "Features",
    "MaskPrompt",
    "Network",
    "Prototypes",
    "Reader",
    "Readout",
    "Target",
    "find_targets",
    "fit_linear_probe",
    "load_network",
    "load_sampling_rate",
    "network_from_module",
]
