# SPDX-License-Identifier: MPL-2.0
"""The figures drawn, as SVG."""

import itertools
import statistics

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"ours": "#d95f02", "Q": "#666666", "B": "#1b9e77", "C": "#7570b3",
           "direct": "#666666", "redrive": "#d95f02", "shovel": "#666666",
           "list": "#1b9e77", "exchange": "#d95f02",
           "3.10": "#d95f02", "4.0": "#1b9e77", "4.3": "#7570b3"}
STYLES = ["-", "--", ":", "-."]
plt.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.grid": True,
    "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.figsize": (7.5, 3.6),
})


def _save(figure, path):
    figure.tight_layout()
    figure.savefig(path + ".svg", metadata={"Date": None})
    plt.close(figure)


def bars(path, labels, panels):
    """Panels of (title, {peer: [the values of each label]}): medians, with least and greatest."""
    figure, axes = plt.subplots(1, len(panels), squeeze=False,
                                figsize=(max(5, 4.8 * len(panels)), 3.6))
    for axis, (title, series) in zip(axes[0], panels):
        series = {peer: values for peer, values in series.items() if any(values)}
        width = 0.8 / max(1, len(series))
        for place, (peer, values) in enumerate(series.items()):
            for x, some in enumerate(values):
                if not some:
                    continue
                middle = statistics.median(some)
                axis.bar(x + (place - (len(series) - 1) / 2) * width, middle, width * 0.92,
                         color=COLOURS[peer], label=peer if x == 0 else None,
                         yerr=[[middle - min(some)], [max(some) - middle]],
                         error_kw={"elinewidth": 1, "capsize": 2})
                axis.annotate(f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}",
                              (x + (place - (len(series) - 1) / 2) * width, max(some)),
                              ha="center", va="bottom", fontsize=6)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_title(title)
        axis.grid(axis="x", visible=False)
        axis.margins(y=0.12)
        axis.legend()
    _save(figure, path)


def _labelled(axis):
    """Plain numbers on a logarithmic axis."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _styled(names_and_peers):
    """A colour for the peer, a line style for its how-manieth line this is."""
    seen = {}
    for name, peer in names_and_peers:
        styles = seen.setdefault(peer, itertools.cycle(STYLES))
        yield name, {"color": COLOURS[peer], "linestyle": next(styles), "label": name}


def quantiles(path, label, runs):
    """{name: (peer, {"p50": ..., ...})}: the share of messages that is no later than x."""
    figure, axis = plt.subplots()
    shares = {"min": 0, "p1": 1, "p5": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90,
              "p95": 95, "p98": 98, "p99": 99, "p995": 99.5, "p999": 99.9, "p9999": 99.99}
    for name, style in _styled((n, peer) for n, (peer, _) in runs.items()):
        values = runs[name][1]
        axis.plot([max(values[q], 0.01) for q in shares],
                  [100 - share for share in shares.values()], **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    _labelled(axis.xaxis)
    _labelled(axis.yaxis)
    axis.set_xlabel(label)
    axis.set_ylabel("% of messages that are later")
    axis.legend()
    _save(figure, path)


def lines(path, x_label, y_label, series, log=False):
    """{name: (peer, xs, ys)}"""
    figure, axis = plt.subplots()
    for name, style in _styled((n, peer) for n, (peer, _, _) in series.items()):
        axis.plot(series[name][1], series[name][2], marker=".", **style)
    if log:
        axis.set_yscale("log")
        _labelled(axis.yaxis)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.legend()
    _save(figure, path)


def cumulative(path, x_label, y_label, curves):
    """{label: (peer, curve of the load generator)}"""
    figure, axis = plt.subplots()
    for name, style in _styled((n, peer) for n, (peer, _) in curves.items()):
        curve = curves[name][1]
        step = curve["bucket_ms"] / 1e3
        sums = list(itertools.accumulate(curve["counts"], initial=0))
        axis.plot([i * step for i in range(len(sums))], sums, **style)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.legend()
    _save(figure, path)
