"""Table 1 of the paper with our rows, and the part of docs/results.md, as functions of the
figures."""

from __future__ import annotations

from typing import Any

from common import head, row

from ghnqat_sdk.bits import Bits

SPLITS = {"id": "ID", "deep": "Deep", "wide": "Wide", "bn-free": "BN-free"}
GRAPHS = dict(zip(SPLITS, (200, 100, 50, 100), strict=True))
IMAGES = 1000
BITS: dict[str, Bits] = {"W4/A4": (4, 4), "W4/A8": (4, 8), "W2/A2": (2, 2), "float": (32, 32)}
PROTOCOLS = {"paper": tuple(BITS), "calibrated": ("W4/A4",)}
KINDS = {"top1": "top-1", "top5": "top-5"}
OURS, BASELINE = "GHN-QAT", "GHN-Q"

# Table 1 of Yun & Wong 2023, arXiv 2309.13773: mean, standard error of the mean and maximum, in the
# order of SPLITS. The copy of the paper that they were read from has no top-5 of GHN-QAT, and the
# paper no figures of GHN-Q at W2/A2.
PAPER = {
    ("top1", "W4/A4", BASELINE): (
        (37.2, 0.3, 52.6),
        (30.7, 0.5, 50.2),
        (34.7, 0.5, 50.7),
        (21.5, 0.8, 36.7),
    ),
    ("top1", "W4/A8", BASELINE): (
        (47.4, 0.4, 63.9),
        (39.0, 0.7, 62.9),
        (43.8, 0.6, 63.3),
        (25.7, 0.9, 43.7),
    ),
    ("top1", "W4/A4", OURS): (
        (52.5, 0.4, 65.7),
        (50.3, 0.6, 63.7),
        (50.6, 0.6, 64.1),
        (24.8, 0.7, 37.2),
    ),
    ("top1", "W4/A8", OURS): (
        (60.2, 0.4, 75.3),
        (56.5, 0.7, 72.5),
        (58.1, 0.7, 73.5),
        (30.7, 1.0, 49.2),
    ),
    ("top1", "W2/A2", OURS): (
        (25.6, 0.2, 36.3),
        (23.0, 0.3, 34.4),
        (24.6, 0.4, 34.8),
        (10.6, 0.1, 14.2),
    ),
    ("top5", "W4/A4", BASELINE): (
        (83.7, 0.2, 91.7),
        (78.6, 0.4, 91.0),
        (82.1, 0.3, 91.4),
        (69.3, 1.1, 87.0),
    ),
    ("top5", "W4/A8", BASELINE): (
        (89.8, 0.2, 95.9),
        (85.2, 0.4, 95.8),
        (88.0, 0.3, 95.5),
        (74.6, 1.2, 89.8),
    ),
}
TEXT = """{passed}

{tables}

- ± is the standard error over graphs, and the last figure the maximum. Every convolution and linear
  layer is quantized.
- GHN-Q is the [work](https://arxiv.org/abs/2208.12489) that GHN-QAT starts from: trained in float,
  quantized only in use. The paper has no figures of it at W2/A2, where it fell to random accuracy.
  The paper's top-5 of GHN-QAT is not given here.
- Ours are of the first {graphs} graphs of the [splits](evaluation.md#splits) of ConvNets-250K
  (re-created), since the paper's graphs are not public, and of {images:,} test images of CIFAR-10
  (JPEG), the same for all graphs, drawn with seed {seed}{fewer}.
- Our GHN-QAT is one hypernetwork for all bit-widths; the paper trains one for
  each.{baseline}{weights}

```bash
python benchmarks/table1.py --data data/cifar10{options} --write-docs
```
"""
BASELINE_NOTE = """
- Our GHN-Q was trained in float and is told float, the only setting that it knows. What it predicts
  is quantized to the bits at hand with the range rule of its own config; nothing else is
  changed."""


def cell(figures: dict[str, Any] | None, graphs: int) -> str:
    """One cell, with the number of graphs behind it where some are still missing."""
    if figures is None:
        return "–"
    text = "{mean:.1f} ± {sem:.1f}; {max:.1f}".format(**figures)
    count = figures["graphs"]
    return text if count == graphs else f"{text} ({count} of {graphs} graphs)"


def table(summary: dict[str, Any], protocol: str, kind: str) -> str:
    """Rows of one protocol, by bit-width; the paper's stand beside ours where its protocol is
    used."""
    setting = summary["setting"]
    graphs, fewer = setting["graphs"], setting["fewer_images"]
    columns = ["bits", KINDS[kind], *SPLITS.values()]
    lines = [head(columns, texts=len(columns))]
    for bits in PROTOCOLS[protocol]:
        for name in (BASELINE, OURS):
            if protocol == "paper" and (kind, bits, name) in PAPER:
                cells = [
                    f"{mean:.1f} ± {sem:.1f}; {most:.1f}"
                    for mean, sem, most in PAPER[kind, bits, name]
                ]
                lines.append(row([bits, f"{name}, paper", *cells]))
            keys = {split: f"{protocol} {kind} {bits} {name} {split}" for split in SPLITS}
            if any(key in summary["figures"] for key in keys.values()):
                cells = [
                    cell(summary["figures"].get(key), graphs[split]) for split, key in keys.items()
                ]
                count = fewer.get(f"{protocol} {name}")
                label = f"{name}, ours ({count} images)" if count else f"{name}, ours"
                lines.append(row([bits, label, *cells]))
    return "\n".join(lines)


def tables(summary: dict[str, Any]) -> str:
    """The paper's protocol, and the calibrated one where it has figures."""
    found = ["### By the paper's protocol", *(table(summary, "paper", kind) for kind in KINDS)]
    if any(key.startswith("calibrated") for key in summary["figures"]):
        found += [
            "### By the calibrated protocol",
            *(table(summary, "calibrated", kind) for kind in KINDS),
        ]
    return "\n\n".join(found)


def passed(summary: dict[str, Any]) -> str:
    """One sentence: the cells in which our mean top-1 is above that of the paper's GHN-QAT."""
    figures, graphs = summary["figures"], summary["setting"]["graphs"]
    paper = {
        (bits, split): mean
        for (kind, bits, name), cells in PAPER.items()
        for split, (mean, _, _) in zip(SPLITS, cells, strict=True)
        if (kind, name) == ("top1", OURS)
    }
    found = {place: figures.get(f"paper top1 {place[0]} {OURS} {place[1]}") for place in paper}
    ours = {place: figure["mean"] for place, figure in found.items() if figure}
    if not ours:
        return "Ours have not been measured yet."
    above = [
        f"{bits} {SPLITS[split]}"
        for (bits, split), mean in ours.items()
        if mean > paper[bits, split]
    ]
    complete = all(
        figure and figure["graphs"] == graphs[split] for (_, split), figure in found.items()
    )
    so_far = "" if complete else " and on the graphs measured so far"
    listed = f": {', '.join(above)}" if above else ""
    return (
        f"By the paper's protocol{so_far}, our mean top-1 is above that of the paper's GHN-QAT in "
        f"{len(above)} of {len(ours)} cells{listed}."
    )


def page(summary: dict[str, Any]) -> str:
    """The part of docs/results.md."""
    setting = summary["setting"]
    graphs, images, names = setting["graphs"], setting["images"], setting["weights"]
    options = " --baseline runs/ghn-q/best" if BASELINE in names else ""
    options += f" --images {images}" if images != IMAGES else ""
    options += f" --graphs {' '.join(map(str, graphs.values()))}" if graphs != GRAPHS else ""
    checksums = ", ".join(f"{name} `{checksum}`" for name, checksum in names.items())
    return TEXT.format(
        passed=passed(summary),
        baseline=BASELINE_NOTE if BASELINE in names else "",
        options=options,
        tables=tables(summary),
        images=images,
        fewer=", fewer in the rows that say so" if setting["fewer_images"] else "",
        seed=setting["seed"],
        graphs=" / ".join(map(str, graphs.values())),
        weights=f"\n- SHA-256 of the weights: {checksums}." if summary["figures"] else "",
    )
