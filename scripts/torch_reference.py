"""The reference that the decoder is held against: transformers in torch, float32, eager attention.

Only checks and benchmarks import this file; the package itself never needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax.errors import UserError
from mood_jax.parity import LOGITS, left_pad

try:
    import torch
except ImportError as e:
    raise UserError("torch is needed for this check only; pip install 'mood_jax[test]'") from e
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def load(folder: Path) -> Any:
    """The checkpoint as a float32 torch model. Raises UserError when transformers does not find every tensor fit."""
    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if wrong:
        raise UserError(f"{folder}: transformers does not load it whole ({wrong}); the comparison would mean nothing")
    return model.eval()


def round_to_bfloat16(model: Any) -> None:
    """Rounds every parameter in place; buffers (rotary frequencies) and the arithmetic stay float32.

    The reference for a bfloat16 model: what differs then is our rounding, not the sum of two.
    """
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16))


def states(model: Any, prompts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Every site [B,T,D] and "logits" [B,T,V] of the left-padded prompts.

    Read by hooks: `hidden_states[-1]` of transformers is taken after the final norm, not after the last block.
    """
    tokens, real, positions = left_pad(prompts)
    found: dict[str, np.ndarray] = {}

    def keep(site: str, value: Any) -> None:
        found[site] = (value[0] if isinstance(value, tuple) else value).detach().float().numpy()

    def keep_input(site: str, args: Any, kwargs: Any) -> None:
        keep(site, args[0] if args else kwargs["hidden_states"])

    body = model.model
    hooks = [body.layers[0].register_forward_pre_hook(lambda _, a, k: keep_input("embed", a, k), with_kwargs=True)]
    for i, layer in enumerate(body.layers):
        hooks.append(layer.register_forward_hook(lambda *a, i=i: keep(f"resid_post@{i}", a[2])))
    hooks.append(body.norm.register_forward_hook(lambda *a: keep("final_norm", a[2])))
    try:
        with torch.no_grad():
            out = model(
                input_ids=torch.from_numpy(tokens).long(),
                attention_mask=torch.from_numpy(real).long(),
                position_ids=torch.from_numpy(positions).long(),
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return found | {LOGITS: out.logits.float().numpy()}
