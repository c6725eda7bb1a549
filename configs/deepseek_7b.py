"""DeepSeek-LLM-7B-Chat in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/deepseek_7b.py --workdir=runs/deepseek_7b
    python scripts/measure.py --config=configs/deepseek_7b.py --workdir=runs/deepseek_7b

Memory: 13.9 GB of weights and 10 GB of cache for 64 rows (multi-head attention): one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights;
--config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 2,200 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
Its repository may hold pickle weights only; then convert them to safetensors once (transformers: save_pretrained).
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("deepseek-ai/deepseek-llm-7b-chat", batch_size=64)
