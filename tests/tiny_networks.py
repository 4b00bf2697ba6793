"""Tiny networks of every supported architecture, with seeded random weights; nothing is downloaded.

`NETWORKS[kind]()` gives a module in evaluation mode, a batch of three examples of different lengths and the
function that reads their outputs (3,3). `tiny_checkpoint(folder, kind)` saves the same architecture with a
tokenizer or processor of its own, so that `load_network(folder, ...)` can open it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

K = 3
_TEXT = """
    it was is this a the great terrible good bad okay yes no maybe movie film story question plot actor
    how who what where dull funny bright slow sharp and of in not very
"""
WORDS = _TEXT.split()
LABEL_IDS = (10, 20, 30)
MASK_ID = 4
LENGTHS = (9, 6, 4)
SAMPLES = (400, 320, 200)

Built = tuple[nn.Module, dict[str, Tensor], Callable[[Mapping[str, Tensor]], Tensor]]

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
_ENCODER = {**_SIZES, "max_position_embeddings": 64}
_ROBERTA = {**_ENCODER, "type_vocab_size": 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_DECODER_TOKENS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    **_DECODER_TOKENS,
}
_LLAMA = {"num_key_value_heads": 2, **_ENCODER, **_DECODER_TOKENS}

_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "bert": lambda v: tf.BertForSequenceClassification(
        tf.BertConfig(vocab_size=v, num_labels=K, pad_token_id=0, **_ENCODER)
    ),
    "roberta": lambda v: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(vocab_size=v, num_labels=K, **_ROBERTA)
    ),
    "distilbert": lambda v: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(
            vocab_size=v,
            num_labels=K,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ),
    "electra": lambda v: tf.ElectraForSequenceClassification(
        tf.ElectraConfig(vocab_size=v, num_labels=K, embedding_size=16, **_ENCODER)
    ),
    "deberta-v2": lambda v: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(
            vocab_size=v,
            num_labels=K,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            **_ENCODER,
        )
    ),
    "gpt2": lambda v: tf.GPT2ForSequenceClassification(tf.GPT2Config(vocab_size=v, num_labels=K, **_GPT2)),
    "llama": lambda v: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(vocab_size=v, num_labels=K, **_LLAMA)
    ),
    "vit": lambda _: tf.ViTForImageClassification(
        tf.ViTConfig(num_labels=K, image_size=16, patch_size=4, **_SIZES)
    ),
    "clip": lambda _: tf.CLIPForImageClassification(
        tf.CLIPConfig(
            vision_config={**_SIZES, "image_size": 16, "patch_size": 4, "projection_dim": 16},
            text_config={**_SIZES, "vocab_size": 64, "projection_dim": 16, **_DECODER_TOKENS},
            projection_dim=16,
            num_labels=K,
        )
    ),
    "wav2vec2": lambda _: tf.Wav2Vec2ForSequenceClassification(
        tf.Wav2Vec2Config(
            vocab_size=64,
            num_labels=K,
            conv_dim=(16, 16),
            conv_kernel=(10, 3),
            conv_stride=(5, 4),
            feat_extract_norm="layer",
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=16,
            **_SIZES,
        )
    ),
    "whisper": lambda _: tf.WhisperForAudioClassification(
        tf.WhisperConfig(
            vocab_size=64,
            num_labels=K,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=20,
            init_std=0.3,
            classifier_proj_size=16,
            decoder_start_token_id=2,
            **_DECODER_TOKENS,
        )
    ),
    "bert-mlm": lambda v: tf.BertForMaskedLM(tf.BertConfig(vocab_size=v, pad_token_id=0, **_ENCODER)),
    "roberta-mlm": lambda v: tf.RobertaForMaskedLM(tf.RobertaConfig(vocab_size=v, **_ROBERTA)),
    "gpt2-lm": lambda v: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=v, **_GPT2)),
    "llama-lm": lambda v: tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=v, **_LLAMA)),
}

KINDS = tuple(_MODULES)


def tiny_module(kind: str, vocab_size: int = 64, seed: int = 0) -> nn.Module:
    """Return a seeded random network in evaluation mode; biases and scales are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _MODULES[kind](vocab_size).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def _tokens(kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    pad = 1 if kind.startswith("roberta") else 0
    ids = torch.randint(5, 64, (len(LENGTHS), max(LENGTHS)), generator=generator)
    attended = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    return {"input_ids": ids.masked_fill(~attended, pad), "attention_mask": attended.long()}


def _masked_lm(kind: str, generator: torch.Generator) -> Built:
    module, tensors = tiny_module(kind), _tokens(kind, generator)
    rows, columns = torch.arange(len(LENGTHS)), torch.tensor([3, 1, 2])
    tensors["input_ids"][rows, columns] = MASK_ID

    def outputs(inputs: Mapping[str, Tensor]) -> Tensor:
        batch = torch.arange(len(inputs["input_ids"]))
        positions = (inputs["input_ids"] == MASK_ID).int().argmax(dim=1)
        return module(**inputs).logits[batch, positions][:, list(LABEL_IDS)]

    return module, tensors, outputs


def _causal_lm(kind: str, generator: torch.Generator) -> Built:
    module, tensors = tiny_module(kind), _tokens(kind, generator)

    def outputs(inputs: Mapping[str, Tensor]) -> Tensor:
        batch, last = torch.arange(len(inputs["input_ids"])), inputs["attention_mask"].sum(dim=1) - 1
        return module(**inputs).logits[batch, last][:, list(LABEL_IDS)]

    return module, tensors, outputs


def build(kind: str) -> Built:
    """Return the module, a batch of three examples of different lengths, and `outputs(tensors) -> (B,3)`."""
    generator = torch.Generator().manual_seed(1)
    if kind.endswith("-mlm"):
        return _masked_lm(kind, generator)
    if kind.endswith("-lm"):
        return _causal_lm(kind, generator)
    module = tiny_module(kind)
    if kind in ("vit", "clip"):
        tensors = {"pixel_values": torch.randn(len(LENGTHS), 3, 16, 16, generator=generator)}
    elif kind == "whisper":
        tensors = {"input_features": torch.randn(len(LENGTHS), 8, 40, generator=generator)}
    elif kind == "wav2vec2":
        heard = torch.arange(max(SAMPLES)) < torch.tensor(SAMPLES).unsqueeze(1)
        waves = torch.randn(len(SAMPLES), max(SAMPLES), generator=generator)
        tensors = {"input_values": waves * heard, "attention_mask": heard.long()}
    else:
        tensors = _tokens(kind, generator)
    return module, tensors, lambda inputs: module(**inputs).logits


NETWORKS: dict[str, Callable[[], Built]] = {kind: (lambda kind=kind: build(kind)) for kind in KINDS}


def wordpiece_tokenizer() -> Any:
    """Return a BERT tokenizer that knows `WORDS`, punctuation and single letters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*specials, *".,?!:;'", *letters, *(f"##{c}" for c in letters), *(w for w in WORDS if w != "a")]
    return tf.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def byte_level_vocabulary(specials: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-level BPE in which every word of `WORDS` is one token after a space, and only then."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        built = "Ġ"
        for letter in word:
            merges[(built, letter)] = None
            built += letter
    pieces = [*specials, *alphabet, *("".join(pair) for pair in merges)]
    return {piece: i for i, piece in enumerate(pieces)}, list(merges)


def roberta_tokenizer() -> Any:
    """Return a RoBERTa tokenizer in which every word of `WORDS` is one token after a space, and only then."""
    vocabulary, merges = byte_level_vocabulary(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tf.RobertaTokenizer(vocab=vocabulary, merges=merges)


def gpt2_tokenizer() -> Any:
    """Return a GPT-2 tokenizer without a padding token."""
    vocabulary, merges = byte_level_vocabulary(["<unused0>", "<unused1>", "<|endoftext|>"])
    return tf.GPT2Tokenizer(vocab=vocabulary, merges=merges)


def marking_tokenizer() -> Any:
    """Return a GPT-2 tokenizer that begins and ends every text with a special token, as BERT's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, marks = gpt2_tokenizer(), ["<unused0>", "<unused1>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = list(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unused0> $A <unused1>", special_tokens=ids
    )
    return tokenizer


def tiny_processor(kind: str) -> Any:
    """Return the tokenizer, image processor or feature extractor that belongs to `kind`."""
    if kind in ("vit", "clip"):
        size = {"height": 16, "width": 16}
        processor = tf.ViTImageProcessorPil if kind == "vit" else tf.CLIPImageProcessorPil
        return processor(size=size, crop_size=size)
    if kind == "wav2vec2":
        return tf.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    if kind == "whisper":
        return tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=400, n_fft=400)
    if kind.startswith(("gpt2", "llama")):
        return gpt2_tokenizer()
    return roberta_tokenizer() if kind.startswith("roberta") else wordpiece_tokenizer()


def tiny_checkpoint(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save the tiny network `kind` with its processor in `folder`, and return the folder."""
    processor = tiny_processor(kind)
    module: Any = tiny_module(kind, len(processor) if hasattr(processor, "get_vocab") else 64, seed)
    if kind.startswith(("gpt2", "llama")):
        module.config.pad_token_id = None
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
