"""What a study leaves behind of its responses: responses.jsonl, and the reduced states with their axes named."""

from __future__ import annotations

from pathlib import Path

from mood_jax import artifacts
from mood_jax.readout import Readout
from mood_jax.studies.collect import Collected


def collected(folder: Path, found: Collected, readout: Readout) -> None:
    """Writes responses.jsonl, states.safetensors ({condition}: float32 [responses, sites, D]) and states.json."""
    artifacts.write_jsonl(folder / "responses.jsonl", found.records)
    states = {condition: values[:, :, 0] for condition, values in found.states.items()}
    artifacts.write_tensors(folder / "states.safetensors", states)
    artifacts.write_json(
        folder / "states.json",
        {
            "axes": ["responses", "sites", "D"],
            "responses": [r["id"] for r in found.records],
            "sites": list(readout.sites),
            "reducer": readout.reducer,
            "span": readout.span,
            "conditions": sorted(states),
        },
    )
