from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from small_runs import checkpoint
from tangentlora.errors import InputError
from tangentlora.models.native import is_causal, native_readout


def configured(folder: Path, architectures: Any, model_type: str = "bert") -> str:
    """Write a configuration without weights, which is all that is read."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": architectures})
    )
    return str(folder)


@pytest.mark.parametrize(
    ("architectures", "model_type", "readout"),
    [
        (["BertForMaskedLM"], "bert", "prompt"),
        (["RobertaForMaskedLM"], "roberta", "prompt"),
        (["DistilBertForMaskedLM", "DistilBertModel"], "distilbert", "prompt"),
        (["BertModel"], "bert", "prototypes"),
        (["MPNetModel"], "mpnet", "prototypes"),
        (["BertForSequenceClassification"], "bert", "head"),
        (["ElectraForPreTraining"], "electra", "head"),
        (["LlamaForCausalLM"], "llama", "prompt"),
        (["GPT2LMHeadModel"], "gpt2", "prompt"),
        (["GPT2DoubleHeadsModel"], "gpt2", "head"),
        (["GPT2Model"], "gpt2", "prototypes"),
        ([], "bert", "head"),
        (None, "bert", "head"),
    ],
)
def test_the_readout_is_what_the_checkpoint_was_trained_for(
    tmp_path: Path, architectures: list[str] | None, model_type: str, readout: str
) -> None:
    assert native_readout(configured(tmp_path, architectures, model_type)) == readout


@pytest.mark.parametrize(
    ("architectures", "model_type", "causal"),
    [
        (["BertForMaskedLM"], "bert", False),
        (["BertModel"], "bert", False),
        (["RobertaForSequenceClassification"], "roberta", False),
        (["BertLMHeadModel"], "bert", True),
        (["LlamaForCausalLM"], "llama", True),
        (["GPT2LMHeadModel"], "gpt2", True),
        (["GPT2Model"], "gpt2", True),
        (["LlamaForSequenceClassification"], "llama", True),
        (None, "gpt2", True),
        (None, "distilbert", False),
    ],
)
def test_a_causal_network_is_told_by_its_class_or_its_family(
    tmp_path: Path, architectures: list[str] | None, model_type: str, causal: bool
) -> None:
    assert is_causal(configured(tmp_path, architectures, model_type)) == causal


@pytest.mark.parametrize(
    ("kind", "readout"), [("bert", "head"), ("bert-mlm", "prompt"), ("gpt2-lm", "prompt"), ("gpt2", "head")]
)
def test_saved_checkpoints_are_recognised(tmp_path: Path, kind: str, readout: str) -> None:
    assert native_readout(str(checkpoint(tmp_path, kind))) == readout


def test_a_bare_encoder_as_transformers_saves_it(tmp_path: Path) -> None:
    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path)
    assert native_readout(str(tmp_path)) == "prototypes"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "got the folder './nowhere', which does not exist"),
        ("{tmp}", "not a folder with a config"),
    ],
)
def test_what_is_no_model_is_told(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        native_readout(model.format(tmp=tmp_path))
