"""Batches for reading: every row once, one shape a length, little padding, and the same states however they are cut."""

import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.batching import bucket, make_batches, make_read_batches
from mood_jax.generation.model import load_model
from tests.studies.tiny import checkpoint


def sequences(rng, n, longest=200):
    return [rng.integers(1, 99, int(length)).tolist() for length in rng.integers(1, longest, n)]


@pytest.mark.parametrize(("n", "batch_size", "most", "divisor"), [(140, 140, 1024, 1), (53, 8, 512, 2), (3, 64, 64, 4)])
def test_reading_batches_hold_every_row_once_within_their_slots(rng, n, batch_size, most, divisor):
    rows = sequences(rng, n)
    batches = make_read_batches(rows, batch_size, most, divisor)
    assert sorted(r for b in batches for r in b.rows) == list(range(n))
    rows_of_length: dict[int, set[int]] = {}
    for b in batches:
        size, length = b.tokens.shape
        assert size % divisor == 0
        assert size <= max(divisor, -(-batch_size // divisor) * divisor)
        assert (size - divisor) * length <= most
        assert length == bucket(max(len(rows[r]) for r in b.rows))
        rows_of_length.setdefault(length, set()).add(size)
        assert b.real.sum() == len(b.rows)
        for k in range(size):
            own = rows[b.rows[k] if b.real[k] else b.rows[0]]
            assert b.tokens[k, length - len(own) :].tolist() == own
            assert not b.tokens[k, : length - len(own)].any()
            assert b.lengths[k] == len(own)
    assert all(len(sizes) == 1 for sizes in rows_of_length.values())  # a program a length
    assert all(b.real.all() for b in batches[:-1])


def test_reading_batches_pad_less_than_batches_of_many_rows(rng):
    rows = sequences(rng, 140)

    def slots(batches):
        return sum(b.tokens.size for b in batches)

    assert slots(make_read_batches(rows, 140, 1024)) < 0.8 * slots(make_batches(rows, 140))


def test_a_reading_batch_of_no_rows_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        make_read_batches([[1]], 0, 64)


def test_states_do_not_depend_on_how_reading_is_cut(tmp_path, monkeypatch, rng):
    model = load_model(str(checkpoint(tmp_path / "m")), dtype="float32")
    prompts, responses = sequences(rng, 20, 30), sequences(rng, 20, 60)

    def read(slots):
        monkeypatch.setattr(api, "READ_TOKENS", dict.fromkeys(("cpu", "gpu"), slots))
        return api.read(model, prompts, responses, sites="all")

    whole = read(10**6)
    np.testing.assert_allclose(read(128), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
