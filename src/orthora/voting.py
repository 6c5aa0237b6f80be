"""Majority voting: the unbiased estimate of maj@k from more samples than k."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from fractions import Fraction
from math import comb


def majority_at_k(votes: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Estimate without bias the chance that the most frequent of k samples' answers is correct.

    Averages over the k-subsets of the n samples, in exact integers. Where several answers lead a
    subset together, one of them is drawn with equal chances.

    Args:
        votes: answers of the n samples of one problem, in a canonical form: equal answers must be
            equal values. None abstains.
        correct: whether each is correct. Correct samples vote for one answer, whatever their votes;
            a wrong sample never joins them, even with the same vote.
        k: size of the hypothetical draw.

    Returns:
        The estimate, in [0, 1]. A subset in which all abstain counts as wrong. Average it over
        problems. ``k = 1`` gives the share of correct samples, ``k = n`` the vote of all.

    Raises:
        ValueError: votes and correct differ in length, or k is below 1 or above n.

    Source: the vote is that of Wang et al. 2023, arXiv 2203.11171, section 2, unweighted; the mean
        over subsets is the argument of Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    n = len(votes)
    if len(correct) != n:
        raise ValueError(f"votes are {n} but correct are {len(correct)}; pass one each per sample")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if k > n:
        raise ValueError(f"k is {k} but only n = {n} samples were drawn; draw more or lower k")
    right = sum(map(bool, correct))
    wrong = Counter(
        vote for vote, hit in zip(votes, correct, strict=True) if not hit and vote is not None
    )
    won = Fraction(0)
    for lead in range(1, min(right, k) + 1):
        subsets = _level_rivals(list(wrong.values()), n - right, k - lead, lead)
        won += comb(right, lead) * sum(
            (Fraction(count, 1 + rivals) for rivals, count in enumerate(subsets)), Fraction(0)
        )
    return float(won / comb(n, k))


def _level_rivals(sizes: Sequence[int], others: int, rest: int, lead: int) -> Iterator[int]:
    """Count the ways to draw the rest of a subset with no answer above the lead.

    A generating function in x (drawn samples) and y (answers level with the lead). An answer with
    ``size`` samples has the factor ``sum of C(size, j) x^j over j < lead, + C(size, lead) x^lead
    y``; those that can't reach the lead, and abstentions, bound nothing: together ``(1 + x)^free``.

    Args:
        sizes: samples of each wrong answer.
        others: samples that are not correct, abstentions among them.
        rest: samples to draw from these.
        lead: correct samples in the subset.

    Yields:
        For 0, 1, 2, ... answers level with the lead: the number of ways.
    """
    # A polynomial in x is an integer, its coefficients the digits: all add up to 2^others at most.
    digit = others + 1
    bound = [size for size in sizes if size >= lead]
    free = (1 + (1 << digit)) ** (others - sum(bound))
    ways = [1]  # by y; x leaves out the lead * y samples of the answers that are level
    for size in bound:
        below = sum(comb(size, j) << (digit * j) for j in range(lead))
        level = comb(size, lead)
        ways = [
            (below * stay + level * rise) & ((1 << (digit * (rest - lead * y + 1))) - 1)
            for y, (stay, rise) in enumerate(zip([*ways, 0], [0, *ways], strict=True))
            if lead * y <= rest
        ]
    for y, polynomial in enumerate(ways):
        yield (polynomial * free >> (digit * (rest - lead * y))) & ((1 << digit) - 1)
