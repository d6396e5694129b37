"""Computes the parts of dual semantic IDs (IDs of items and of users) in loops: the loss that aligns users with items,
the quantiser, the shares of the Sinkhorn algorithm, and pooled vectors."""

import math


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def u2i(users, items, others):
    """Returns, for each user, the cross-entropy of the item in the same row. The softmax is over all items of the
    batch, without the other items that the user chose. `others` marks these."""
    losses = []
    for row, user in enumerate(users):
        scores = [sum(x * y for x, y in zip(user, item, strict=True)) for item in items]
        counted = [score for column, score in enumerate(scores) if column == row or not others[row][column]]
        losses.append(math.log(sum(math.exp(score) for score in counted)) - scores[row])
    return losses


def quantise(latents, codebooks, commitment):
    """Returns the codes, the sum of their centroids, and the loss of each latent vector."""
    codes, sums, losses = [], [], []
    for latent in latents:
        residual, chosen, loss = list(latent), [], 0.0
        for codebook in codebooks:
            code = min(range(len(codebook)), key=lambda k: distance(residual, codebook[k]))
            loss += (1 + commitment) * distance(residual, codebook[code])
            residual = [x - y for x, y in zip(residual, codebook[code], strict=True)]
            chosen.append(code)
        codes.append(chosen)
        sums.append([x - y for x, y in zip(latent, residual, strict=True)])
        losses.append(loss / len(codebooks))
    return codes, sums, losses


def sinkhorn(distances, epsilon, iterations):
    """Converts the distances to positive shares, and scales the columns and the rows of the shares in turn. In the
    result, each row sums to 1, and the columns have nearly equal sums."""
    top, low = max(map(max, distances)), min(map(min, distances))
    shares = [[math.exp(-((d - (top + low) / 2) / ((top - low) / 2)) / epsilon) for d in row] for row in distances]
    for _ in range(iterations):
        columns = [sum(row[k] for row in shares) for k in range(len(shares[0]))]
        shares = [[share / column for share, column in zip(row, columns, strict=True)] for row in shares]
        shares = [[share / sum(row) for share in row] for row in shares]
    return shares


def pooled(vectors, items):
    """Returns the weighted mean of the vectors of the items. The weights are those of dot-product attention with the
    plain mean as the query."""
    width = len(vectors[0])
    if not items:
        return [0.0] * width
    mean = [sum(vectors[item][d] for item in items) / len(items) for d in range(width)]
    scores = [sum(vectors[item][d] * mean[d] for d in range(width)) / math.sqrt(width) for item in items]
    weights = [math.exp(score) for score in scores]
    return [
        sum(w * vectors[item][d] for w, item in zip(weights, items, strict=True)) / sum(weights) for d in range(width)
    ]
