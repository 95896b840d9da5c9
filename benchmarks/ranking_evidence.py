"""Which measure ranks networks as training does? Against the accuracies of ranking_truth.py.

    python benchmarks/ranking_evidence.py --data data/cifar10

Scores of ranking_scores.py, one epoch of QAT, sums of ranks, and small regressions on several
scores, each network left out of the fit that it is judged by; once more over the networks alone
that were trained after the first sums of ranks were chosen. Columns: Kendall's τ and Spearman's ρ
with bootstrap intervals of 95 %, the regret of choosing the best of the five that a measure likes
most, and seconds of the processor for a network (medians). Needs scikit-learn (and SciPy, which it
brings). Writes results/ranking_evidence.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from math import isfinite
from typing import Any

import common
import numpy as np
from common import RESULTS, SHIPPED, measure_all, read_lines
from ranking_scores import scores_of
from ranking_truth import EPOCHS, networks, noise
from ranking_truth import read as read_truth

from ghnqat_sdk.hypernetwork.names import WEIGHTS_FILE

LINES = RESULTS / "ranking_evidence.jsonl"
SUMMARY = RESULTS / "ranking_evidence.json"
RESAMPLES = 2000
CHOSEN = 5
ONE_EPOCH = "one epoch of QAT"
COMBINED = {
    "regression on predicted, gradient norm": ("predicted likelihood", "log gradient norm"),
    "the same, depth, parameters": (
        *("predicted likelihood", "log gradient norm"),
        *("shallowness", "log parameters"),
    ),
    "regression on depth, multiply-accumulates": ("shallowness", "log macs"),
}
"""Scores of each regression."""
RANKS = {
    "ranks of predicted, gradient norm": ("predicted likelihood", "less gradient"),
    "the same on 128 images": ("predicted likelihood, 128 images", "less gradient"),
    "ranks of first step, depth, multiply-accumulates": ("first step", "shallowness", "macs"),
    "these and predicted": ("first step", "shallowness", "macs", "predicted likelihood"),
}
"""Scores whose ranks are added up, without a fit. The first pair was chosen when all networks were
trained, and both halves of them liked it; the last two when a third was."""
CHOSEN_BY = 32  # lines of the truth, the first, that these and the length of the step are chosen by
FEWEST = 8  # other networks that make a table of their own

Values = Sequence[float]


def kendall(scores: Values, truth: Values) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(scores, truth).statistic)


def spearman(scores: Values, truth: Values) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(scores, truth).statistic)


def interval(of: Callable[[Values, Values], float], scores: Values, truth: Values) -> list[float]:
    """Of 95 %, over networks drawn again and again."""
    rng = np.random.default_rng(0)
    pairs = np.array([scores, truth])
    drawn = rng.integers(len(truth), size=(RESAMPLES, len(truth)))
    found = [of(*pairs[:, rows]) for rows in drawn]
    return [round(float(np.quantile(found, q)), 3) for q in (0.025, 0.975)]


def regret(scores: Values, truth: Values) -> float:
    """Points between the best network and the best of those with the highest scores."""
    liked = np.argsort(scores)[::-1][:CHOSEN]
    return max(truth) - max(truth[i] for i in liked)


def left_out(columns: Sequence[Values], truth: Values) -> list[float]:
    """Predicted truth of each network by a ridge regression on all others."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 2, 9)))
    return list(cross_val_predict(model, np.array(columns).T, np.array(truth), cv=LeaveOneOut()))


def ceiling(truth: Values, deviation: float) -> float:
    """Kendall's τ of two trainings of the same networks that differ in their seeds alone."""
    rng = np.random.default_rng(0)
    draws = np.array(truth) + deviation * rng.standard_normal((200, 2, len(truth)))
    return statistics.fmean(kendall(*pair) for pair in draws)


def sum_of_ranks(columns: Sequence[Values]) -> list[float]:
    from scipy.stats import rankdata

    return list(np.sum([rankdata(column) for column in columns], 0))


def figures(scores: Values, truth: Values, seconds: float) -> dict[str, Any]:
    return {
        "tau": round(kendall(scores, truth), 3),
        "tau interval": interval(kendall, scores, truth),
        "rho": round(spearman(scores, truth), 3),
        "rho interval": interval(spearman, scores, truth),
        "regret": round(regret(scores, truth), 2),
        "seconds": round(seconds, 3),
    }


def finite(scores: Values) -> list[float]:
    """With the least in place of those that are not finite: a logarithm of zero."""
    least = min(score for score in scores if isfinite(score))
    return [score if isfinite(score) else least for score in scores]


def once(nets: Iterable[str], scored: dict[str, dict[str, Any]]) -> list[str]:
    """Those that a space has several times, under other names, count once."""
    first: dict[Any, str] = {}
    for net in nets:
        first.setdefault(tuple(scored[net]["scores"].values()), net)
    return list(first.values())


def compared(
    scored: dict[str, dict[str, Any]], trained: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Figures of every measure over the networks that were trained."""
    nets = [net for net in scored if net in trained]
    truth = [trained[net]["test"] for net in nets]
    columns = {
        name: finite([scored[net]["scores"][name] for net in nets])
        for name in scored[nets[0]]["scores"]
    }
    seconds = {
        name: statistics.median(scored[net]["seconds"][name] for net in nets) for name in columns
    }
    epoch = statistics.median(trained[net]["seconds"] / EPOCHS for net in nets)
    found = {name: figures(values, truth, seconds[name]) for name, values in columns.items()}
    found[ONE_EPOCH] = figures([trained[net]["val"][0] for net in nets], truth, epoch)
    for name in ("parameters", "macs", "gradient norm"):
        columns[f"log {name}"] = list(np.log(columns[name]))
        seconds[f"log {name}"] = seconds[name]
    columns["less gradient"] = [-norm for norm in columns["gradient norm"]]
    seconds["less gradient"] = seconds["gradient norm"]
    for name, parts in RANKS.items():
        values = sum_of_ranks([columns[part] for part in parts])
        found[name] = figures(values, truth, sum(seconds[part] for part in parts))
    for name, parts in COMBINED.items():
        values = left_out([columns[part] for part in parts], truth)
        found[name] = figures(values, truth, sum(seconds[part] for part in parts))
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    def with_interval(row: dict[str, Any], name: str) -> str:
        low, high = row[f"{name} interval"]
        return f"{row[name]:.2f} ({low:.2f} to {high:.2f})"

    lines = [common.head(["", "τ", "ρ", "regret of five", "processor, s"])]
    for name, row in sorted(found.items(), key=lambda item: -item[1]["tau"]):
        cells = [name, with_interval(row, "tau"), with_interval(row, "rho")]
        lines.append(common.row([*cells, f"{row['regret']:.1f}", f"{row['seconds']:.2f}"]))
    return "\n".join(lines)


def scored_networks(options: Any, weights: str) -> dict[str, dict[str, Any]]:
    """Lines by network, of the weights that ship."""

    def known() -> dict[str, dict[str, Any]]:
        return {line["net"]: line for line in read_lines(LINES) if line["weights"] == weights}

    missing = [net for net in networks() if net not in known()]
    each = partial(line_of, data=options.data, weights=weights)
    for _ in measure_all(missing, each, LINES, options.processes, options.minutes):
        pass
    return known()


def line_of(net: str, data: str, weights: str) -> dict[str, Any]:
    return {"weights": weights, **scores_of(net, data)}


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    common.add_measuring(parser)
    options = parser.parse_args()
    weights = sha256((SHIPPED / WEIGHTS_FILE).read_bytes()).hexdigest()
    scored = scored_networks(options, weights)
    lines = list(read_truth().values())
    first = {line["net"]: line for line in lines if line["seed"] == 0 and line["net"] in scored}
    trained = {net: first[net] for net in once(first, scored)}
    found = compared(scored, trained)
    print(table(found))
    chosen_by = {line["net"] for line in lines[:CHOSEN_BY]}
    others = {net: line for net, line in trained.items() if net not in chosen_by}
    fresh = compared(scored, others) if len(others) >= FEWEST else {}
    if fresh:
        print(f"\nThe {len(others)} networks that chose nothing:\n{table(fresh)}")
    count = len(trained)
    deviation = noise(lines)
    summary = {"weights": weights, "networks": count, "between seeds": deviation}
    if deviation is not None:
        summary["ceiling"] = round(ceiling([t["test"] for t in trained.values()], deviation), 3)
    print(f"\n{count} networks; between seeds {deviation}, ceiling {summary.get('ceiling')}")
    common.write_json(SUMMARY, {**summary, "measures": found, "measures, others": fresh})


if __name__ == "__main__":
    main()
