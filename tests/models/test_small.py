from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tangentlora.models import ClassificationHead, load_network
from tangentlora.models.load import load_sampling_rate
from tangentlora.models.small import FRAME, WINDOW, save_vit, save_wav2vec2, small_vit, small_wav2vec2

RATE = 8_000


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_weights_are_drawn_from_the_seed_and_nothing_else() -> None:
    before = torch.random.get_rng_state()
    assert equal(small_vit(3, image_size=8, seed=1), small_vit(3, image_size=8, seed=1))
    assert not equal(small_vit(3, image_size=8, seed=1), small_vit(3, image_size=8, seed=2))
    one, same, other = (small_wav2vec2(3, sampling_rate=RATE, seed=seed) for seed in (1, 1, 2))
    assert equal(one, same)
    assert not equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_vit_is_opened_as_any_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = small_vit(3, image_size=8, seed=0).eval()
    save_vit(module, tmp_path)
    network = load_network(str(tmp_path), ClassificationHead(3, modality="image"))
    assert capfd.readouterr() == ("", "")
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    z = network.predict([Image.fromarray(image) for image in levels])
    pixels = torch.from_numpy(levels / 127.5 - 1).float()[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(z, module(pixel_values=pixels).logits.detach(), rtol=1e-5, atol=1e-5)
    assert [target.shape for target in network.targets()] == [(64, 64), (64, 64)]


def test_a_saved_wav2vec2_is_opened_as_any_checkpoint(tmp_path: Path) -> None:
    module = small_wav2vec2(3, sampling_rate=RATE, seed=0).eval()
    save_wav2vec2(module, tmp_path, RATE)
    assert load_sampling_rate(str(tmp_path)) == RATE
    network = load_network(str(tmp_path), ClassificationHead(3, modality="audio"))
    draw = np.random.default_rng(0)
    waves = [(0.1 + 0.3 * draw.standard_normal(n)).astype(np.float32) for n in (4000, 2500)]
    z = network.predict(waves)
    for i, wave in enumerate(waves):  # alone and unpadded, scaled by hand
        scaled = torch.from_numpy((wave - wave.mean()) / wave.std())[None]
        alone = module(scaled, attention_mask=torch.ones_like(scaled).long()).logits[0].detach()
        torch.testing.assert_close(z[i], alone, rtol=1e-3, atol=1e-3)
    assert [target.shape for target in network.targets()] == [(96, 96), (96, 96)]


def test_the_first_convolution_is_a_bank_of_filters_spaced_in_mel() -> None:
    module = small_wav2vec2(3, sampling_rate=RATE, seed=0)
    bank = module.get_parameter("wav2vec2.feature_extractor.conv_layers.0.conv.weight")[:, 0].detach()
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(48))
    response = torch.fft.rfft(bank, n=8192).abs()
    peaks = response.argmax(1) * RATE / 8192
    mel = 2595 * torch.log10(1 + peaks / 700)
    expected = torch.linspace(2595 * math.log10(1 + 100 / 700), 2595 * math.log10(1 + 3800 / 700), 24)
    # Below some 200 Hz a filter of 8 ms holds less than two periods, and its peak is moved
    torch.testing.assert_close(mel[3:24], expected[3:], rtol=0, atol=25)
    torch.testing.assert_close(mel[27:], expected[3:], rtol=0, atol=25)
    assert (bank[:24] * bank[24:]).sum(1).abs().max() < 1e-4  # a cosine and a sine at each frequency


def test_a_frame_is_computed_from_the_samples_that_are_said() -> None:
    module = small_wav2vec2(3, sampling_rate=RATE, seed=0).eval()
    samples = WINDOW + 5 * FRAME - 1
    wave = torch.randn(1, samples, requires_grad=True)
    frames = module.get_submodule("wav2vec2.feature_extractor")(wave)
    assert frames.shape[2] == (samples - WINDOW) // FRAME + 1
    (gradient,) = torch.autograd.grad(frames[0, :, 3].sum(), wave)
    heard = gradient[0].nonzero()[:, 0]
    # The Hann window is 0 at both ends of the first convolution
    assert (int(heard.min()), int(heard.max())) == (3 * FRAME + 1, 3 * FRAME + WINDOW - 2)
