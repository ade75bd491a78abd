"""Holding videos out by group, stratified by class: a pure function of names and seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence


def join_groups(groups: Iterable[str], ties: Iterable[Sequence[str]]) -> dict[str, str]:
    """Joins groups that are tied together (union-find).

    Args:
      groups: names of groups.
      ties: sequences of names of groups that must stay together.

    Returns:
      Group -> the first name, in sorted order, of those it is joined with.
    """
    parent = {group: group for group in groups}

    def find(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for first, *others in ties:
        for other in others:
            low, high = sorted((find(first), find(other)))
            parent[high] = low
    return {group: find(group) for group in parent}


def draw_groups(
    members: Mapping[str, Sequence[str]], fraction: float, seed: int, salt: str
) -> frozenset[str]:
    """Chooses whole groups that hold about a fraction of each class's videos.

    Groups are visited in the order of a hash of (seed, salt, name), so neither the order of files
    nor of classes matters, and taken where that brings the classes nearer to their share. A class
    that still has nothing then gives its smallest group, if every class keeps half of its videos.
    No class ever loses all.

    Args:
      members: group -> class of each of its videos.
      fraction: wanted share of each class, in [0, 1).
      seed: another seed gives another choice.
      salt: another purpose gives an independent choice.
    """
    if not fraction:
        return frozenset()
    counts = {group: Counter(classes) for group, classes in members.items()}
    total = sum(counts.values(), Counter())
    taken: Counter[str] = Counter()
    chosen: set[str] = set()

    def order(group: str) -> tuple[bytes, str]:
        text = f"{seed}\0{salt}\0{group}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=8).digest(), group

    def distance(group: str, after: int) -> float:
        return sum(
            abs(taken[name] + after * n - fraction * total[name])
            for name, n in counts[group].items()
        )

    def keeps(group: str, share: float) -> bool:
        """Whether every class would keep a video, and at least this share of them."""
        left = {name: total[name] - taken[name] - n for name, n in counts[group].items()}
        return all(n > 0 and n >= share * total[name] for name, n in left.items())

    def take(group: str) -> None:
        chosen.add(group)
        taken.update(counts[group])

    groups = sorted(counts, key=order)
    for group in groups:
        if keeps(group, 0.0) and distance(group, 1) < distance(group, 0):
            take(group)
    of_class = defaultdict(list)
    for group in groups:
        for name in counts[group]:
            of_class[name].append(group)
    for name in sorted(total):
        if not taken[name]:
            fitting = [group for group in of_class[name] if keeps(group, 0.5)]
            if fitting:  # `min` gives the first, by hash, of the smallest.
                take(min(fitting, key=lambda group: counts[group].total()))
    return frozenset(chosen)
