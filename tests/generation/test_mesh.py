"""Generation, reading and dialogues on meshes of 8 simulated devices give the single device's tokens and states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fixtures.tokenizers import make_tokenizer
from tests.parity.hf_models import save, tiny

# A script, because the number of devices is fixed when jax starts. Prints one JSON object a mesh.
SCRIPT = """
import json, sys
import jax
import numpy as np
import mood_jax as mj
from mood_jax.generation import engine
from mood_jax.generation.dialogue import Dialogue
from tests.generation.test_donation import assert_in_place

rng = np.random.default_rng(0)
head = rng.integers(5, 200, 24).tolist()  # is computed once, on every mesh
prompts = [head + rng.integers(5, 200, n).tolist() for n in (3, 12, 4, 17, 2, 9, 9, 5, 6, 11, 3, 2, 7, 5, 16, 4, 4)]
engine.KNEE["cpu"] = 8  # of the 17 (24 on eight devices) rows, those that have ended are left behind
engine.BLOCK["cpu"] = 24
engine.CHUNK["cpu"] = 16  # no device is left with one row, whose products take more memory than its cache
take, taken = engine.take, []
engine.take = lambda state, rows: (taken.append(len(rows)), take(state, rows))[1]
chunk, compiled = engine.decode_chunk, {}

def checked(params, state, *others, spec):
    # the chunk, compiled once for these shapes and seen to copy no device's part of the cache
    key = (spec, state.cache[0].k.shape, params["embedding"].sharding)
    if key not in compiled:
        compiled[key] = chunk.lower(params, state, *others, spec=spec).compile()
        part = [jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(state.cache)]
        assert_in_place(compiled[key], [part[k : k + 2] for k in range(0, len(part), 2)], len(jax.tree.leaves(params)))
    return compiled[key](params, state, *others)

engine.decode_chunk = checked
options = {"sites": "all", "reducers": ("decay_0.9", "mean", "max_abs")}
first = None
for data, model in ((1, 1), (8, 1), (2, 4), (1, 8)):
    m = mj.load_model(sys.argv[1], dtype="float32", mesh=mj.make_mesh(data, model))
    m.chat.eos_token_ids = list(range(0, 200, 5))
    taken.clear()
    assert mj.generation.api.plan(m, prompts).batches[0].shared is not None
    r = mj.generate(m, prompts, max_new_tokens=40, sampler=mj.TopP(0.9, temperature=0.7), **options)
    assert taken and compiled, "no row was left behind"
    again = mj.read(m, prompts, r, **options)
    first = (r, again) if first is None else first
    worst = [float(np.abs(x - y).max() / np.abs(y).max()) for x, y in ((r.states, first[0].states), (again, first[1]))]
    same = [t.tolist() for t in r.tokens] == [t.tolist() for t in first[0].tokens]
    print(json.dumps({"mesh": [data, model], "same_tokens": same, "worst": max(worst), "n": int(r.n_tokens.sum())}))
    if (data, model) != (2, 4):
        continue
    # two turns of a dialogue, whose cache is carried, also that of rows that were left behind
    dialogue = Dialogue(m, max_new_tokens=20, sampler=mj.TopP(0.9, temperature=0.7), **options)
    said = [dialogue.generate(prompts)]
    longer = [[*p, *map(int, t), 7, 8, 9] for p, t in zip(prompts, said[0].tokens)]
    said.append(dialogue.generate(longer))
    one = mj.load_model(sys.argv[1], dtype="float32", mesh=mj.make_mesh(1, 1))
    one.chat.eos_token_ids = m.chat.eos_token_ids
    engine.decode_chunk = chunk
    for k, (r, asked) in enumerate(zip(said, (prompts, longer))):
        want = mj.generate(one, asked, max_new_tokens=20, sampler=mj.TopP(0.9, temperature=0.7), **options)
        worst = float(np.abs(r.states - want.states).max() / np.abs(want.states).max())
        same = [t.tolist() for t in r.tokens] == [t.tolist() for t in want.tokens]
        row = {"same_tokens": same, "worst": worst, "n": int(r.n_tokens.sum())}
        print(json.dumps({"mesh": f"turn {k + 1}", "carried": dialogue.carried, **row}))
    engine.decode_chunk = checked
"""


def test_generation_does_not_depend_on_the_mesh(tmp_path):
    folder = save(tiny("llama", num_hidden_layers=2)[0], tmp_path / "llama")
    make_tokenizer("llama", folder)
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["mesh"] for r in rows] == [[1, 1], [8, 1], [2, 4], "turn 1", "turn 2", [1, 8]]
    assert rows[4]["carried"] > 17 * 24  # the beginning that all share, at least
    for row in rows:
        assert row["same_tokens"]
        assert row["worst"] <= 1e-5
        assert row["n"] > 0
