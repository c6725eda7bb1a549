"""The families: HF config → `DecoderConfig`, and HF tensor name → parameter path.

Each module offers `MODEL_TYPE`, `decoder_config(hf)` and `tensor_names(config)`. DeepSeek-LLM and Yi 1.5 ship as
`model_type: llama` and differ from Llama 3 by configuration alone, so `llama.py` serves all three.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mood_jax.errors import UserError
from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import gemma2, llama, mistral, qwen2

FAMILIES: dict[str, ModuleType] = {module.MODEL_TYPE: module for module in (qwen2, llama, gemma2, mistral)}


def family_of(hf: Any) -> ModuleType:
    """The module for a transformers config. Raises UserError for an architecture that is not supported."""
    if hf.model_type not in FAMILIES:
        raise UserError(
            f"unknown architecture {hf.model_type!r}; supported are {', '.join(sorted(FAMILIES))} "
            "(Qwen2/2.5, Llama 3, DeepSeek-LLM, Yi 1.5, Gemma 2, Mistral)"
        )
    return FAMILIES[hf.model_type]


def decoder_config(hf: Any) -> DecoderConfig:
    """A transformers config → DecoderConfig. Raises UserError when it asks for something that the decoder lacks."""
    return family_of(hf).decoder_config(hf)
