"""Rank tables: which methods differ significantly over data sets and pairs of networks. Does not import torch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from mdistiller.report.layout import Block, Grid, Heading, Paragraph
from mdistiller.report.significance import LEVEL, p_text
from mdistiller.runs.fill import FilledTable
from mdistiller.runs.statistics import Ranks, rank_methods

TITLE = "Mean ranks over the pairs of networks"


def rank_blocks(tables: Sequence[FilledTable]) -> list[Block]:
    """A rank table of the methods of several tables over all of their pairs (data sets and networks).

    Within a pair only cells of its most frequent protocol are ranked. The ranked methods are those with runs on the
    most pairs, over the pairs with runs of all of them; the others are left out and named.
    """
    found = {f"table {filled.table.name}, {group}": _results(filled, cells)
             for filled in tables for group, cells in filled.groups.items()}
    counts = Counter(name for block in found.values() for name in block)
    ranked = [name for name, count in counts.items() if count == max(counts.values())]
    wanted = {title: common_means({name: block.get(name, {}) for name in ranked}) for title, block in found.items()}
    whole, missing = complete_blocks(wanted)
    rare = [name for name in counts if name not in ranked]
    left_out = [f"{what} {', '.join(names)}" for what, names in (("methods", rare), ("pairs", missing)) if names]
    words = [Paragraph(f"Left out, for runs are missing: {'; '.join(left_out)}.")] if left_out else []
    heading = Heading(TITLE, 2)
    if len(whole) < 2 or len(ranked) < 2:
        return [heading, Paragraph("Nothing to rank: expected runs of two methods on two pairs at least."), *words]
    head, rows, said = rank_lines(rank_methods(whole))
    return [heading, Paragraph(said), Grid(head, tuple(rows), TITLE), *words]


def _results(filled, cells) -> dict[str, dict[int, float]]:
    """{method: headline metric by seed} of the cells with runs of the pair's most frequent protocol."""
    with_runs = {name: cell for name, cell in cells.items() if cell.by_seed(filled.epoch)}
    protocols = Counter(cell.protocol for cell in with_runs.values())
    return {name: cell.by_seed(filled.epoch) for name, cell in with_runs.items()
            if cell.protocol == protocols.most_common(1)[0][0]}


def common_means(results: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """{method: mean over the seeds that all methods of a block have}, from seed -> result; NaN without such a seed."""
    seeds = set.intersection(*map(set, results.values())) if results else set()
    return {name: fmean(found[seed] for seed in seeds) if seeds else math.nan for name, found in results.items()}


def rank_lines(ranks: Ranks) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """(head, rows, text) of a rank table, the best method first."""
    rows = [(name, f"{mean:.2f}") for name, mean in sorted(ranks.means.items(), key=lambda item: item[1])]
    friedman = f"Friedman's p {_equals(p_text(ranks.p))}. " if not math.isnan(ranks.p) else ""
    words = (f"Mean ranks over {ranks.blocks} blocks, 1 being best, each by the seeds that all have. "
             f"{friedman}Critical difference {ranks.critical:.2f} (Nemenyi): methods that are less apart are not told "
             f"apart at {LEVEL}.")
    return ("method", "mean rank"), rows, words


def _equals(text):
    return text if text.startswith("<") else f"= {text}"


def complete_blocks(blocks: Mapping[str, Mapping[str, float]]) -> tuple[list[Mapping[str, float]], list[str]]:
    """(blocks with a number for every method, names of the other blocks). NaN does not count as a number."""
    whole = {name: block for name, block in blocks.items() if not any(map(math.isnan, block.values()))}
    return list(whole.values()), [name for name in blocks if name not in whole]
