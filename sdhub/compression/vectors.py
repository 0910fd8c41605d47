"""k-means of vectors of 2 or 4 weights: k-means++ (Arthur and Vassilvitskii 2007) on a sample, then Lloyd."""

from __future__ import annotations

import torch
from torch import Tensor

# As many as Faiss takes (Johnson et al., arXiv 1702.08734).
SAMPLE = 256  # vectors per cluster that the centroids are found on
ROUNDS = 25
CHUNK = 1 << 16  # vectors at once: what fits a core's cache


def cluster_vectors(vectors: Tensor, masses: Tensor, clusters: int, seed: int) -> Tensor:
    """Centroids (clusters, d) of `vectors` (n, d) weighted by `masses` (n,), float32; the same for the same seed.

    Up to 256 vectors per cluster are taken; fewer vectors than clusters come back with the last repeated.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(vectors), generator=generator)[: SAMPLE * clusters]
    vectors, masses = vectors[kept], masses[kept].double()
    if len(vectors) <= clusters:
        return torch.cat([vectors, vectors[-1:].expand(clusters - len(vectors), -1)])
    centroids = _first(vectors, masses, clusters, generator)
    for _ in range(ROUNDS):
        index = nearest_vectors(vectors, centroids).long()
        mass = torch.zeros(clusters, dtype=torch.float64).index_add_(0, index, masses)
        moment = torch.zeros(clusters, vectors.shape[1], dtype=torch.float64)
        moment.index_add_(0, index, vectors * masses[:, None])
        new = torch.where(mass[:, None] > 0, moment / mass.clamp_min(1e-300)[:, None], centroids.double()).float()
        if torch.equal(new, centroids):
            break
        centroids = new
    return centroids


def nearest_vectors(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Index, uint8 (n,), of the centroid (k, d) nearest to each of `vectors` (n, d)."""
    offset = centroids.square().sum(dim=1) / 2
    found = [(offset - part @ centroids.T).argmin(dim=1) for part in vectors.split(CHUNK)]
    return torch.cat(found).to(torch.uint8)


def _first(vectors: Tensor, masses: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64)
    distance = torch.full((len(vectors),), 1.0, dtype=torch.float64)
    chosen = []
    for draw in draws:
        curve = torch.cumsum(distance * masses, 0)
        pick = min(int(torch.searchsorted(curve, draw * curve[-1])), len(vectors) - 1)
        chosen.append(vectors[pick])
        near = (vectors - vectors[pick]).square().sum(dim=1).double()
        distance = near if len(chosen) == 1 else torch.minimum(distance, near)
    return torch.stack(chosen)
