"""The figure of the distribution of EA's weights in language models (`mdistiller.analysis.token_weights`)."""

import numpy as np

BINS = 60
WIDTH, HEIGHT = 6.8, 2.6  # inches
LOOKS = (("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", ":"))  # Okabe and Ito's colours, and lines for print
PANELS = {"token": "of single tokens", "sequence": "of sequences (mean entropies)"}


def token_weights(plt, source):
    """Histograms of w / mean of w for the run's own student, one line for each temperature T'.

    The label gives the standard deviation in percent of the mean.
    """
    rows = {(row["student"], row["temperature"], row["level"]): row for row in source.table("spread")}
    arrays = source.arrays("weights")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(WIDTH, HEIGHT), layout="constrained")
    for axis, (level, words) in zip(axes, PANELS.items(), strict=True):
        for (name, by_level), (colour, line) in zip(_own(arrays), LOOKS, strict=True):
            values = by_level[level] / by_level[level].mean()
            spread = rows["own", float(name), level]["percent"]
            heights, edges = np.histogram(values, bins=np.linspace(0, 2.5, BINS + 1), density=True)
            axis.stairs(heights, edges, color=colour, linestyle=line, linewidth=1.3,
                        label=f"T' = {name}: deviation {spread:.1f} %")
        axis.set(xlabel="w / mean of w", title=f"Weights {words}", xlim=(0, 2.5))
        axis.legend(loc="upper right")
    axes[0].set_ylabel("density")
    return figure


def _own(arrays):
    """[(T' as text, {level: weights})] of the run's own student, ordered by T'."""
    own = {key.split("|")[1]: part for key, part in arrays.items() if key.split("|")[0].endswith(", own")}
    return sorted(own.items(), key=lambda item: float(item[0]))
