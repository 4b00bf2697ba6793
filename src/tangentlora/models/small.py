"""Small networks of the architectures ViT and wav2vec2, made from configurations instead of checkpoints.

Trained elsewhere and saved here in the layout of the hub, they are opened by `load_network` as any other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FRAME, WINDOW = 160, 414
"""Samples from one frame of the small wav2vec2 to the next, and samples that a frame is computed from."""

_SCALE = 0.1  # of the first weights: about 1/√width; the published 0.02 learns slowly at such widths


def small_vit(num_labels: int, *, image_size: int, seed: int) -> nn.Module:
    """Return a ViT classifier of RGB images (image_size, image_size) with weights drawn from `seed`.

    Four layers of width 64 with four heads; the patches are 2×2 pixels.
    """
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        num_labels=num_labels,
        image_size=image_size,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        initializer_range=_SCALE,
    )
    return _drawn(ViTForImageClassification, config, seed)


def small_wav2vec2(num_labels: int, *, sampling_rate: int, seed: int) -> nn.Module:
    """Return a wav2vec2 classifier of waveforms at `sampling_rate` hertz with weights drawn from `seed`.

    Three layers of width 96 with four heads over frames of `FRAME` samples. Its first convolution starts as a
    bank of filters, since learning one takes longer than all else. It takes an attention mask, so that its
    outputs do not depend on the padding, and drops nothing at random in training.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        num_labels=num_labels,
        vocab_size=32,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        conv_dim=(48, 64, 96),
        conv_kernel=(64, 8, 8),
        conv_stride=(10, 4, 4),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=96,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        initializer_range=_SCALE,
    )
    module = _drawn(Wav2Vec2ForSequenceClassification, config, seed)
    with torch.no_grad():
        first = module.get_parameter("wav2vec2.feature_extractor.conv_layers.0.conv.weight")
        first.copy_(_filter_bank(first.shape[0], first.shape[2], sampling_rate)[:, None])
    return module


def save_vit(module: nn.Module, folder: Path) -> None:
    """Write a ViT and an image processor for its image size, which maps pixels to [−1, 1]."""
    from transformers import ViTImageProcessorPil

    network: Any = module
    side = network.config.image_size
    _save(network, folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)


def save_wav2vec2(module: nn.Module, folder: Path, sampling_rate: int) -> None:
    """Write a wav2vec2 and a feature extractor at `sampling_rate` hertz.

    The extractor scales every waveform to mean 0 and variance 1 and gives an attention mask.
    """
    from transformers import Wav2Vec2FeatureExtractor

    _save(module, folder)
    Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=True, return_attention_mask=True
    ).save_pretrained(folder)


def _drawn(architecture: Any, config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = architecture(config)
    return module


def _save(network: Any, folder: Path) -> None:
    """Write configuration and weights without the bar that transformers would draw."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        network.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def _filter_bank(channels: int, width: int, sampling_rate: int) -> Float[Tensor, "channels width"]:
    """Return cosines and sines under a Hann window, of norm 1, at frequencies evenly spaced in mel.

    They lie between 100 Hz and 0.95 of the Nyquist frequency; mel(f) = 2595 log10(1 + f/700).
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (100, 0.475 * sampling_rate))
    mel = torch.linspace(low, high, channels // 2)
    frequencies = 700 * (10 ** (mel / 2595) - 1)
    phase = 2 * math.pi * frequencies[:, None] * (torch.arange(width) - (width - 1) / 2) / sampling_rate
    filters = torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(width, periodic=False)
    return functional.normalize(filters, dim=1)
