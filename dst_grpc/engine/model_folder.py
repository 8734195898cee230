"""The files of a folder with a model, by name; and folders of another kind: what they are, and what to do with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dst_grpc.engine.files import CorruptFile, corrupt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Weights in one file, or what says in which files they are; the first is read if both are there."""
ADAPTER_FILE = "adapter_config.json"
ADAPTER = "is of an adapter (LoRA): merge it into its base model (PEFT's merge_and_unload), save that, and serve it"
FLOATS_ONLY = "only floats are read here, so serve the model that they were made of"
_GGUF = "is a GGUF file: make a folder of it with dst-grpc convert, and serve that"
_OWN_LAYOUT = (
    "is of a layout that only its maker's own code reads: serve the model as transformers has it, "
    "whose scripts convert_llama_weights_to_hf and convert_mistral_weights_to_hf write that"
)
_SAVED_AGAIN = "from transformers import {0} as A; A.from_pretrained('.').save_pretrained('.')"
_PICKLE = (
    "is a pickle, which is never loaded here: convert it to model.safetensors, which transformers does, in its folder, "
    f'by python -c "{_SAVED_AGAIN.format("AutoModelForCausalLM")}"'
)
_TOKENIZER = (
    "is of a tokenizer without its tokenizer.json; to make that, run in its folder, where transformers is installed "
    f'(for a .model, sentencepiece too): python -c "{_SAVED_AGAIN.format("AutoTokenizer")}"'
)

_INSTEAD: Mapping[str, tuple[tuple[str, str], ...]] = {
    CONFIG: (
        (r".+\.gguf", _GGUF),
        (r"snapshots", "holds a folder for each revision of the model: serve one of those"),
        (r"params\.json|consolidated.*", _OWN_LAYOUT),
    ),
    WEIGHTS: (
        (r"pytorch_model.*\.bin", _PICKLE),
        (
            r"model\.\w+\.safetensors",
            "is a variant of the weights, of another element type: to serve it, rename it to model.safetensors",
        ),
        (
            r"model.*-\d+-of-\d+.*\.safetensors",
            "is one part of the weights, and model.safetensors.index.json is missing, which says what is in which",
        ),
        (r"consolidated.*\.(safetensors|pth)", _OWN_LAYOUT),
        (r".+\.gguf", _GGUF),
        (r"weights.*\.npz", "is of an older layout of MLX: write it with mlx_lm.convert, and serve that"),
        (
            r"tf_model.*\.h5|flax_model.*\.msgpack|.+\.onnx",
            "is a format that is not read here: serve the model's safetensors",
        ),
    ),
    TOKENIZER: (
        (r"vocab\.json|merges\.txt|vocab\.txt|tokenizer\.model|spiece\.model", _TOKENIZER),
        (
            r"tekken\.json|.+\.tiktoken",
            "is a tokenizer that another library reads: take the tokenizer.json of the model as transformers has it",
        ),
    ),
}
"""By the file that a folder lacks: names of what may lie there instead, and what that is, as the end of a sentence."""
_QUANTISED = (
    r"qweight|qzeros|scales|biases|g_idx|SCB|(nested_)?absmax|(nested_)?quant_map|quant_state\..+|weight_scale(_inv)?"
    r"|weight_packed|weight_zero_point|input_scale"
)
_TENSORS = (
    (r"base_model\.model\..+|.+\.lora_[AB]\..+", ADAPTER),
    (rf".+\.({_QUANTISED})", f"is of quantised weights: {FLOATS_ONLY}"),
)


def instead_of(name: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Which of *names*, of the files of a folder that lacks the file *name*, lies there instead, and what it is.

    That is the end of a sentence that begins with the name. None if nothing is known of any.
    """
    known, kinds = sorted(names), _INSTEAD.get(name, ())
    return next(((one, what) for pattern, what in kinds for one in known if re.fullmatch(pattern, one)), None)


def missing(folder: Path, name: str) -> CorruptFile:
    """The error for *folder*, which lacks the file *name*; it says what lies there instead, if that is known."""
    found, what = instead_of(name, (path.name for path in folder.iterdir())) or (name, "is missing")
    if (folder / name).is_symlink():
        found, what = name, leads_nowhere(folder / name)
    return corrupt(folder / found, what)


def leads_nowhere(link: Path) -> str:
    """What a *link* is at whose end nothing is."""
    return f"is a link to {str(link.readlink())!r}, where there is nothing"


def check_whole_model(folder: Path) -> None:
    """Raise DataLoss if *folder* holds an adapter, or lacks the config of a model."""
    if (folder / ADAPTER_FILE).exists():
        raise corrupt(folder / ADAPTER_FILE, ADAPTER)
    if not (folder / CONFIG).exists():
        raise missing(folder, CONFIG)


def what_tensor_is(name: str) -> str:
    """What a tensor called *name* is, if it is of no model that is read here; empty if that is not known."""
    return next((what for pattern, what in _TENSORS if re.fullmatch(pattern, name)), "")
