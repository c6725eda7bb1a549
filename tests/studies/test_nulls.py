"""Whole models without any style: the instruction in the context earns no verdict of "real" (210 draws each)."""

import numpy as np
import pytest

from mood_jax import bank
from mood_jax.generation.model import load_model, random_weights
from mood_jax.organisms.export import organism_folder
from mood_jax.probes.evidence import judge
from mood_jax.readout import preset
from mood_jax.studies.collect import Protocol
from mood_jax.studies.nulls import false_alarms, verdicts

SEEDS = 30  # × 7 axes
TOKENS = 32


@pytest.fixture(scope="module")
def model():
    return load_model(str(organism_folder("no_style")), dtype="float32")


def draws(models):
    found = []
    for seed, model in enumerate(models):
        protocol = Protocol(preset("last4", model.config.n_layers), TOKENS, seed=seed, batch_size=140)
        found += verdicts(model, bank.axes(), protocol, n_boot=300, n_perm=400)
    return found


def check(blocks):
    result = false_alarms(blocks)
    print(result)
    assert result.draws == 210
    assert result.in_context_auc > 0.9
    assert result.real <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 210)
    assert result.leaks > 0.9
    assert result.passed
    # Judged on the states in context, nearly all of them would be called real: the check can fail.
    for block in blocks:
        block["re_read"] = block["in_context"]
        block["permutation"]["p_holm"] = 0.0
        block["length_residualised"] |= {"p": 0.0, "auc_ci95": block["in_context"]["auc_ci95"]}
        judge(block)
    assert not false_alarms(blocks).passed


def test_untrained_weights_are_not_called_real(model):
    check(draws(random_weights(model, seed) for seed in range(SEEDS)))


def test_a_model_that_hears_instructions_and_follows_none_is_not_called_real(model):
    blocks = draws([model] * SEEDS)
    differ = np.mean([b["manipulation"]["texts_differ"] for b in blocks])
    assert differ <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(blocks))
    check(blocks)
