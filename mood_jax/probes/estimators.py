"""The estimators of a direction by name (method, section 4)."""

import functools

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.directions import Estimator, fit_mean_difference
from mood_jax.probes.logistic import fit_logistic_cv
from mood_jax.probes.whitened import fit_whitened

ESTIMATORS = ("mean_difference", "logistic", "whitened")


def estimator(name: str, n_folds: int) -> Estimator:
    """The estimator called `name`, one of `ESTIMATORS`.

    The same object for the same arguments, so that a program compiled for it (as a static argument) is found again.

    Args:
      name: mean_difference, logistic or whitened.
      n_folds: K of the folds by which `logistic` chooses its penalty.
    Raises:
      UserError: no estimator has this name, or fewer than one fold.
    """
    n_folds = inputs.count("n_folds", n_folds)
    if name == "mean_difference":
        return fit_mean_difference
    if name == "logistic":
        return _logistic(n_folds)
    if name == "whitened":
        return fit_whitened
    raise UserError(f"no estimator is called {name!r}; use one of {', '.join(ESTIMATORS)}")


@functools.cache
def _logistic(n_folds: int) -> Estimator:
    return functools.partial(fit_logistic_cv, n_folds=n_folds)
