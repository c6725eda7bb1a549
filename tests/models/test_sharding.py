"""The same numbers on any mesh: 8 simulated CPU devices against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mood_jax.errors import UserError
from mood_jax.models.sharding import PARAM_AXES, RULES, batch_sharding, make_mesh, param_sharding
from tests.parity.hf_models import save, tiny

pytestmark = pytest.mark.usefixtures("unoptimised")

ROOT = Path(__file__).parents[2]
MESHES = ((8, 1), (2, 4), (1, 8))

# Written as a script because the number of devices is fixed when jax starts. Prints one JSON object a line.
ON_EIGHT_DEVICES = """
import json, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
from mood_jax import parity
from mood_jax.models.checkpoint import flatten, load_checkpoint
from mood_jax.models.decoder import run
from mood_jax.models.sharding import batch_sharding, make_mesh

assert len(jax.devices()) == 8
rng = np.random.default_rng(int(sys.argv[1]))
forward = jax.jit(run, static_argnums=0, static_argnames=("sites", "logits"))
for folder in sys.argv[2:]:
    reference, cache = None, tempfile.mkdtemp(dir=folder)
    for data, model in ((1, 1), (8, 1), (2, 4), (1, 8)):
        mesh = make_mesh(data, model)
        c = load_checkpoint(folder, dtype="float32", mesh=mesh)
        restored = True
        if (data, model) in ((1, 1), (2, 4)):  # written from one device, restored to eight
            again = load_checkpoint(folder, dtype="float32", mesh=mesh, param_cache=cache)
            pairs = zip(jax.tree.leaves(c.params), jax.tree.leaves(again.params), strict=True)
            restored = c.fingerprint == again.fingerprint and all(
                a.sharding == b.sharding and np.array_equal(a, b) for a, b in pairs
            )
        if reference is None:
            lengths = rng.integers(4, 13, 8)
            inputs = parity.left_pad([rng.integers(0, c.config.vocab_size, n).tolist() for n in (12, *lengths[1:])])
            real = inputs[1]
        tokens, valid, positions = (jax.device_put(x, batch_sharding(mesh, x.shape)) for x in inputs)
        logits, _, states = forward(c.config, c.params, tokens, positions, valid, sites=c.config.sites)
        found = dict(zip((*c.config.sites, "logits"), map(np.asarray, (*states, logits))))
        reference = found if reference is None else reference
        agreement = parity.compare(found, reference, real)
        shards = {p: [x.shape, x.addressable_shards[0].data.shape, len(x.addressable_shards)]
                  for p, x in flatten(c.params).items()}
        print(json.dumps({"mesh": [data, model], "restored": restored, "sites": len(agreement), "shards": shards,
                          "worst": max(a.max_delta for a in agreement), "devices": len(states[-1].sharding.device_set),
                          "fingerprint": c.fingerprint, "rows": states[-1].addressable_shards[0].data.shape[0]}))
"""


def test_states_do_not_depend_on_the_mesh(tmp_path, seed):
    """Llama with 8 key/value heads, which every mesh divides, and Gemma 2 with 6 over 3, which only (8, 1) does."""
    llama = {"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 400, "head_dim": 6}
    gemma = {"num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 397, "hidden_size": 60}
    save(tiny("llama", seed, num_hidden_layers=2, **llama)[0], tmp_path / "llama")
    save(tiny("gemma2", seed, num_hidden_layers=2, **gemma)[0], tmp_path / "gemma2")
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(seed), str(tmp_path / "llama"), str(tmp_path / "gemma2")],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(x["mesh"]) for x in lines] == [(1, 1), *MESHES] * 2
    for line in lines:
        data, model = line["mesh"]
        assert line["sites"] == 2 + 2 + 1
        assert line["worst"] <= 1e-5, line
        assert line["restored"], line
        assert line["devices"] == data * model
        assert line["rows"] == 8 // data
        for path, (whole, shard, n) in line["shards"].items():
            assert n == data * model
            name = path.rpartition("/")[2]
            for size, part, axis in zip(whole, shard, PARAM_AXES[name], strict=True):
                divided = RULES[axis] == "model" and size % model == 0
                assert part == (size // model if divided else size), (path, whole, shard)
    llama_8, gemma_8 = lines[3]["shards"], lines[7]["shards"]
    assert llama_8["block_0/attention/q"][1] == [2, 6, 64]
    assert llama_8["block_0/attention/k"][1] == [1, 6, 64]
    assert llama_8["block_1/feed_forward/down"][1] == [64, 12]
    assert llama_8["embedding"][1] == [50, 64]
    assert gemma_8["block_0/attention/q"][1] == gemma_8["block_0/attention/q"][0] == [6, 32, 60]  # replicated
    assert gemma_8["embedding"][1] == [397, 60]
    assert gemma_8["block_0/feed_forward/gate"][1] == [12, 60]
    for family in (lines[:4], lines[4:]):
        assert len({x["fingerprint"] for x in family}) == 1


def test_placements_on_one_device():
    mesh = make_mesh()
    assert mesh.shape == {"data": 1, "model": 1}
    assert param_sharding(mesh, "block_0/attention/q", (4, 8, 16)).spec == PartitionSpec("model", None, None)
    assert param_sharding(mesh, "output_norm/scale", (16,)).spec == PartitionSpec(None)
    assert batch_sharding(mesh, (4, 7)).spec == PartitionSpec("data", None)
    np.testing.assert_array_equal(jax.device_put(np.arange(4), batch_sharding(mesh, (4,))), np.arange(4))


@pytest.mark.parametrize(("data", "model"), [(2, 4), (0, 1), (1, -1)])
def test_a_mesh_that_is_too_large(data, model):
    with pytest.raises(UserError, match=f"{data} × {model}"):
        make_mesh(data, model, jax.devices()[:1])
