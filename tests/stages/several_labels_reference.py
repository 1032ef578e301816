"""What several labels an image should give, written from the equations in numpy."""

import numpy as np


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference_probabilities(regions, positive, negative, bias, tau):
    """Return [N, C] of regions [N, R, D] at temperature `tau`, in float64."""
    aggregated = []
    for prompts in (positive, negative):
        cosines = unit(regions) @ unit(prompts).T
        weights = np.exp(cosines / tau)
        aggregated.append((weights / weights.sum(axis=1, keepdims=True) * cosines).sum(axis=1))
    both = np.exp(np.array(aggregated) / tau)
    return np.clip(both[0] / both.sum(axis=0) + np.tanh(bias), 0, 1)


def reference_metrics(predicted, targets):
    jaccards, recalls, f1s = [], [], []
    for guess, truth in zip(predicted.T, targets.T, strict=True):
        right, wrong = (guess & truth).sum(), (guess & ~truth).sum()
        missed = (~guess & truth).sum()
        if right + wrong + missed:
            jaccards.append(right / (right + wrong + missed))
            f1s.append(2 * right / (2 * right + wrong + missed))
        if right + missed:
            recalls.append(right / (right + missed))
    precision, recall = np.mean(jaccards), np.mean(recalls)
    both = precision + recall
    return (
        (predicted == targets).mean(),
        2 * precision * recall / both if both else 0,
        np.mean(f1s),
    )
