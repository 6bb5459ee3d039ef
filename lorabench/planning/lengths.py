"""How long a task's rows are in tokens: counted where the rows are at hand, else by what is known of the task."""

from collections.abc import Sequence

import numpy as np

# Tokens of rows at each twentieth, from the shortest to the longest, as the package's stand-in tokenizers count them;
# with training and validation rows.
TWEETS = (2, 12, 16, 20, 22, 25, 27, 28, 30, 32, 34, 35, 37, 38, 40, 42, 44, 46, 49, 54, 75)


def spread_lengths(quantiles: Sequence[int], rows: int, most: int, seed: int = 0) -> list[int]:
    """So many lengths that are spread as `quantiles` say, in random order, none longer than `most`."""
    places = np.linspace(0, len(quantiles) - 1, rows)
    lengths = np.interp(places, range(len(quantiles)), quantiles).round().astype(int)
    return np.minimum(np.random.default_rng(seed).permutation(lengths), most).tolist()
