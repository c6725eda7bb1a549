"""Probes: directions, scores and the evidence that makes a number believable.

Pure functions on arrays; nothing here knows models, generation or files. One problem is `states` [n, d] (one row per
response), `sign` [n] (+1 positive pole, −1 negative, 0 left out) and `question` [n]; axes, readouts, folds and
resamples are vmapped over it.

    directions.py   trimmed mean, mean difference: states and signs → a unit vector, or a flag that there is none
    logistic.py     regularised logistic regression by Newton's method in the span of the samples
    whitened.py     the mean difference through the inverse of the shrunk covariance within the poles
    estimators.py   the three estimators of a direction by name
    scores.py       projections and the scalings `iqr`, `article`, `pole`, `re_read`; clip rate
    inputs.py       what a caller gives: checked once, converted without changing a value
    separation.py   AUC, d′, accuracies
    folds.py        question-grouped folds, and projections made comparable across them
    spans.py        what the Gram matrix of the samples is enough for: refits in n × n work
    resampling.py   held-out projections, question bootstrap, Holm, Benjamini–Hochberg
    student.py      Student's t: the mean of few scores with its interval and p
    permutation.py  pole-swap permutation
    controls.py     length alone, taken out and matched, cut-off share, outlier coordinates, random directions
    words.py        the words of the responses as a probe
    comparisons.py  paired tests, split halves, cosines of directions
    verdicts.py     one word per axis: real, length, dead, no variance; the manipulation check
    ranking.py      readouts in order, best of each reducer, those that hold on every axis
    evidence.py     all of the above for all axes of a model in one compiled program
    reliability.py  agreement of repeated measurements: intraclass correlations, variance components
    geometry.py     principal components, effective dimension, overlap of directions and of scores
    arrays.py       masked quantiles, residuals, full-precision einsum

A sample is left out by its sign and never by indexing, so unequal folds, unequal poles and questions without one pole
share one compiled program. Nothing returns NaN on finite input: what cannot be computed is 0 (or chance) with a flag
`ok`. What is no number, label or id, and a pole that has no sample at all, is refused with one line (`UserError`).
"""

from mood_jax.probes.comparisons import (
    Split,
    clustered_correlation,
    cross_set_cosine,
    half_splits,
    mahalanobis_cosine,
    mcnemar,
    paired_auc_difference,
    paired_test,
    sign_flip_p,
    split_half,
    split_half_cosine,
)
from mood_jax.probes.controls import (
    cutoff_share,
    length_covariates,
    length_matched,
    length_matched_auc,
    length_only_auc,
    length_residualised,
    random_direction_percentile,
    top_k_share,
)
from mood_jax.probes.directions import Direction, Estimator, fit_mean_difference, mean_difference, trimmed_mean
from mood_jax.probes.estimators import ESTIMATORS, estimator
from mood_jax.probes.evidence import evidence
from mood_jax.probes.folds import grouped_folds
from mood_jax.probes.geometry import (
    PCA,
    Cosines,
    Overlap,
    behavioural_r,
    correlation_table,
    cosine_floor,
    cosine_table,
    effective_dimension,
    geo_cos,
    geometry,
    participation_ratio,
    pca,
)
from mood_jax.probes.logistic import (
    PENALTIES,
    LogisticChoice,
    LogisticFit,
    LogisticPath,
    choose_logistic,
    fit_logistic,
    fit_logistic_cv,
    logistic_projections,
    newton,
    standardised_gram,
)
from mood_jax.probes.permutation import pole_swap_test
from mood_jax.probes.ranking import Ranked, best_per_reducer, holds, production, ranking
from mood_jax.probes.reliability import (
    ICC,
    ICC_FORMS,
    MeanSquares,
    VarianceComponents,
    f_quantile,
    icc,
    mean_squares,
    reliability,
    variance_components,
)
from mood_jax.probes.resampling import (
    HeldOut,
    benjamini_hochberg,
    bootstrap_counts,
    bootstrap_indices,
    bootstrap_mean_ci,
    cross_validated_projections,
    evaluate,
    heldout,
    holm,
)
from mood_jax.probes.scores import Scale, Scaling, calibrate_scaling, clip_rate, project, score
from mood_jax.probes.separation import auc, dprime, midpoint_accuracy, threshold_accuracy
from mood_jax.probes.student import MeanInterval, mean_interval
from mood_jax.probes.verdicts import Manipulation, Verdict, manipulation, verdict
from mood_jax.probes.whitened import fit_whitened, ledoit_wolf, whitened_coefficients, within_gram
from mood_jax.probes.words import bag_of_words_auc

__all__ = [
    "ESTIMATORS",
    "ICC",
    "ICC_FORMS",
    "PCA",
    "PENALTIES",
    "Cosines",
    "Direction",
    "Estimator",
    "HeldOut",
    "LogisticChoice",
    "LogisticFit",
    "LogisticPath",
    "Manipulation",
    "MeanInterval",
    "MeanSquares",
    "Overlap",
    "Ranked",
    "Scale",
    "Scaling",
    "Split",
    "VarianceComponents",
    "Verdict",
    "auc",
    "bag_of_words_auc",
    "behavioural_r",
    "benjamini_hochberg",
    "best_per_reducer",
    "bootstrap_counts",
    "bootstrap_indices",
    "bootstrap_mean_ci",
    "calibrate_scaling",
    "choose_logistic",
    "clip_rate",
    "clustered_correlation",
    "correlation_table",
    "cosine_floor",
    "cosine_table",
    "cross_set_cosine",
    "cross_validated_projections",
    "cutoff_share",
    "dprime",
    "effective_dimension",
    "estimator",
    "evaluate",
    "evidence",
    "f_quantile",
    "fit_logistic",
    "fit_logistic_cv",
    "fit_mean_difference",
    "fit_whitened",
    "geo_cos",
    "geometry",
    "grouped_folds",
    "half_splits",
    "heldout",
    "holds",
    "holm",
    "icc",
    "ledoit_wolf",
    "length_covariates",
    "length_matched",
    "length_matched_auc",
    "length_only_auc",
    "length_residualised",
    "logistic_projections",
    "mahalanobis_cosine",
    "manipulation",
    "mcnemar",
    "mean_difference",
    "mean_interval",
    "mean_squares",
    "midpoint_accuracy",
    "newton",
    "paired_auc_difference",
    "paired_test",
    "participation_ratio",
    "pca",
    "pole_swap_test",
    "production",
    "project",
    "random_direction_percentile",
    "ranking",
    "reliability",
    "score",
    "sign_flip_p",
    "split_half",
    "split_half_cosine",
    "standardised_gram",
    "threshold_accuracy",
    "top_k_share",
    "trimmed_mean",
    "variance_components",
    "verdict",
    "whitened_coefficients",
    "within_gram",
]
