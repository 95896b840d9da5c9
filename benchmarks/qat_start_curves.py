"""Accuracy by step of the networks that qat_initialization.py trained, and a sentence on it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from qat_start_tasks import (
    MARKS,
    TUNING_STEPS,
    best_rates,
    networks,
    tuning_networks,
)

FEWEST = 4  # networks in a mean that is shown


class Curves:
    """Test accuracy by step of each (network, bits, start).

    It is from the run with the best validation accuracy at that step.
    """

    def __init__(self, lines: Iterable[dict[str, Any]], weights: str) -> None:
        self.weights = weights
        self.wanted = networks()
        lines = sorted(
            (line for line in lines if line["weights"] in ("", weights)),
            key=lambda line: line["steps"],
        )
        self.rates = best_rates(lines)
        found: dict[
            tuple[str, str, str], dict[int, tuple[float, float]]
        ] = {}  # (validation, test) by step
        # Validation accuracy of the validation networks before and after the steps that decide the
        # first rate.
        self.tuning: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
        for line in lines:
            bits, start = line["bits"], line["start"]
            if line["net"] in tuning_networks() and line["steps"] == TUNING_STEPS[0]:
                ends = line["val"]["0"], line["val"][str(TUNING_STEPS[0])]
                self.tuning.setdefault((bits, start, line["rate"]), []).append(ends)
            elif line["net"] in self.wanted:
                best = found.setdefault((line["net"], bits, start), {})
                # After n steps in float follow n with quantization: only the last of them counts.
                for mark in [str(line["steps"])] if start == "float" else line["test"]:
                    if line["val"][mark] > best.get(int(mark), (-1.0, 0.0))[0]:
                        best[int(mark)] = line["val"][mark], line["test"][mark]
        self.of = {
            key: {mark: test for mark, (_, test) in best.items()} for key, best in found.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {
            f"{bits} {start} {steps}": rate for (bits, start, steps), rate in self.rates.items()
        }
        test = {" ".join(key): curve for key, curve in self.of.items()}
        return {"weights": self.weights, "learning_rates": rates, "test": test}

    @classmethod
    def of_dict(cls, facts: dict[str, Any]) -> Curves:
        """What `as_dict` gave."""
        curves = cls((), facts["weights"])
        for key, curve in facts["test"].items():
            net, bits, start = key.rsplit(" ", 2)
            curves.of[net, bits, start] = {int(mark): test for mark, test in curve.items()}
        nets = dict.fromkeys(net for net, _, _ in curves.of)
        curves.wanted = tuple(net for net in nets if "val" not in net.split("/"))
        return curves

    def nets(self) -> list[str]:
        return [net for net in self.wanted if any(key[0] == net for key in self.of)]

    def at(self, step: int, bits: str, start: str) -> dict[str, float]:
        """Accuracy by network."""
        found = {net: self.of.get((net, bits, start), {}) for net in self.nets()}
        return {net: curve[step] for net, curve in found.items() if step in curve}

    def common(self, step: int, bits: str) -> list[str]:
        """Networks trained both from predicted parameters and from He's; none if too few."""
        he = self.at(step, bits, "he")
        nets = [net for net in self.at(step, bits, "predicted") if net in he]
        return nets if len(nets) >= FEWEST else []


def steps_to_reach(curves: Curves, bits: str) -> str:
    """One sentence: when He's mean reaches that of the predicted start after 100 steps."""
    longest = max((mark for mark in MARKS if curves.common(mark, bits)), default=0)
    nets = curves.common(longest, bits)
    if longest < 100:
        return ""
    goal = statistics.fmean(curves.at(100, bits, "predicted")[net] for net in nets)
    means = {
        mark: statistics.fmean(found[net] for net in nets)
        for mark in MARKS
        if (found := curves.at(mark, bits, "he")).keys() >= set(nets)
    }
    reached = next((mark for mark, mean in means.items() if mean >= goal), None)
    what = f"what the predicted start has after 100 ({goal:.1f} %, {len(nets)} networks)"
    if reached is None:
        return f"At {bits}, He has not reached after {longest:,} steps {what}."
    return f"At {bits}, He needs {reached:,} steps to reach {what}."
