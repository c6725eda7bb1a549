"""Which of JAX's settings a number may hang on: some are refused, some are recorded, and random keys are made here.

A draw depends on a seed, an id and a token's index, and on nothing else. JAX has settings that change the random bits
or the types that they are made in; under one of them nothing is drawn at all. Others change numbers by rounding; those
are recorded among a run's settings, so that it is not resumed under others.
"""

from __future__ import annotations

import os
import shlex
from enum import Enum
from typing import Any

import jax

from mood_jax import values
from mood_jax.errors import UserError

IMPLEMENTATION = "threefry2x32"  # named wherever a key is made, so jax_default_prng_impl changes nothing

# The settings that decide random bits and dtypes, and the only values under which anything is computed: JAX's defaults.
FIXED: dict[str, Any] = {
    "jax_threefry_partitionable": True,
    "jax_enable_x64": False,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
}
FIXED_ALLOWED = {"jax_explicit_x64_dtypes": ("warn", "error")}  # ALLOW keeps float64 where it is asked for
# The settings that change numbers by rounding, with JAX's defaults.
ROUNDING: dict[str, Any] = {
    "jax_default_matmul_precision": None,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_compiler_enable_remat_pass": True,
    "jax_allow_f16_reductions": True,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_use_shardy_partitioner": True,
    "jax_enable_pgle": False,
    "jax_xla_profile_version": 0,
}
# Environment variables that change them without JAX's knowing.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "TF_XLA_FLAGS", "ROCBLAS_DEFAULT_ATOMICS_MODE")
# Flags of XLA that write, log, cache or count devices, and change no number.
IDLE = ("xla_dump_", "xla_force_host_platform_device_count", "xla_hlo_profile", "xla_gpu_cuda_data_dir", "logtostderr")
IDLE += ("stderrthreshold", "v=", "vmodule", "xla_gpu_per_fusion_autotune_cache_dir", "xla_gpu_kernel_cache_file")
IDLE += ("xla_gpu_force_compilation_parallelism",)


def check_flags() -> None:
    """Raises UserError where a setting of JAX would change the draws or the types that are computed in."""
    there = jax.config.values
    allowed = {name: (_plain(value),) for name, value in FIXED.items()} | FIXED_ALLOWED
    for name, good in allowed.items():
        # Another release of JAX may lack a setting: then it has the behaviour that is the default here.
        if name in there and _plain(there[name]) not in good:
            raise UserError(
                f"{name} is {_plain(there[name])}, under which draws or dtypes are others; unset {name.upper()}, or "
                f"call jax.config.update({name!r}, {good[0]!r})"
            )


def key(seed: int) -> jax.Array:
    """The random key of a seed: the one way in which a key is made, the same under all settings of JAX.

    Raises UserError for a seed outside 0 … 2³² − 1, and as `check_flags`.
    """
    check_flags()
    return jax.random.key(values.seed(seed), impl=IMPLEMENTATION)


def flags() -> dict[str, Any]:
    """The settings other than JAX's defaults that change numbers by rounding, JSON-ready: {} where there are none."""
    there = jax.config.values
    found = {n: _plain(there[n]) for n, usual in ROUNDING.items() if n in there and _plain(there[n]) != _plain(usual)}
    for name in VARIABLES:
        if said := _telling(os.environ.get(name, "")):
            found[name] = said
    return found


def recorded() -> dict[str, Any]:
    """`flags` as a part of a run's settings: nothing where there are none, so that it stays what it was without."""
    found = flags()
    return {"flags": found} if found else {}


def _telling(variable: str) -> str:
    """The flags of an environment variable that may change a number; the last of each, in the order of their names."""
    try:
        words = shlex.split(variable)
    except ValueError:  # a quote that is not closed
        words = variable.split()
    named = {word.partition("=")[0]: word for word in words if not word.lstrip("-").startswith(IDLE)}
    return " ".join(named[name] for name in sorted(named))


def _plain(value: Any) -> Any:
    """A setting as JAX writes it: an enumeration by its word."""
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name.lower()
    return value
