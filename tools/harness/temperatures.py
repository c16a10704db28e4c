"""Temperatures at which no pair saturates."""


def temperature_for(metric, D):
    """One that keeps the logits near 1, so that no single saturated pair carries all of the error."""
    return 2.0 * D if metric == "sqeuclidean" else 1.0
