"""Model cards of hypernetworks on the Hub, made from their configs and from what `ghnqat evaluate
--json` wrote."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError, problems
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig

_HEAD = """---
library_name: ghnqat-sdk
{license_line}tags: [ghnqat-sdk, graph-hypernetwork, quantization, quantization-aware-training]
---
# {name}

A graph hypernetwork (GHN-QAT): it reads the computation graph of a CNN with the bits of every
layer, and predicts parameters that classify after quantization, without training.

```python
import ghnqat_sdk
import torchvision

model = torchvision.models.resnet18(num_classes={classes})
qmodel = ghnqat_sdk.predict_quantized_params(model, bits=(4, 4), hypernetwork="{repo_id}")
```

`config.json` describes the hypernetwork and `model.safetensors` holds its weights; nothing here is
a pickle. `sha256sum --check model.safetensors.sha256` reveals damage.

## Training data

{data}, {size} × {size} pixels, {classes} classes.
"""
_NO_FIGURES = """## Figures

None yet. `ghnqat evaluate --hypernetwork {repo_id} --json FILE` measures them on unseen networks.
"""
_FIGURES = """## Figures

Accuracy of predicted parameters in percent, without any training, on test images of the data above:
mean ± standard error over networks that were not seen in training; maximum.

{totals}
"""
_FAMILIES = """### By family

Mean top-1 in percent.

{families}
"""
_LIMITS = """## Limits

- The promise of accuracy ends with the data above: elsewhere, and for other numbers of classes, a
  prediction is an initialization.
- Predicted parameters do not reach the accuracy of trained ones; they save the beginning of
  training.
- Quantization is simulated, asymmetric and uniform; weights have one range a tensor by default.
- The hypernetwork inherits whatever its images are biased towards. It is not meant for decisions
  about people.
"""
_LICENSE = """## License

{license}
"""
_CITATION = """## Citation

```bibtex
@article{yun2023ghnqat,
  title   = "{GHN-QAT}: Training Graph Hypernetworks to Predict Quantization-Robust Parameters of
             Unseen Limited Precision Neural Networks",
  author  = {Yun, Stone and Wong, Alexander},
  journal = {arXiv preprint arXiv:2309.13773},
  year    = {2023}
}
@inproceedings{knyazev2021parameter,
  title     = {Parameter Prediction for Unseen Deep Architectures},
  author    = {Knyazev, Boris and Drozdzal, Michal and Taylor, Graham W. and
               Romero-Soriano, Adriana},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}
@inproceedings{knyazev2023canwescale,
  title     = {Can We Scale Transformers to Predict Parameters of Diverse {ImageNet} Models?},
  author    = {Knyazev, Boris and Hwang, Doha and Lacoste-Julien, Simon},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}
```
"""


class _Accuracy(BaseModel):
    """In percent over networks."""

    model_config = ConfigDict(frozen=True)
    mean: float
    sem: float
    max: float
    graphs: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.sem:.1f}; {self.max:.1f}"


class CardEvaluation(BaseModel):
    """What a card reads of a file of `ghnqat evaluate --json`."""

    model_config = ConfigDict(frozen=True)
    space: str
    split: str
    protocol: str
    images: int = Field(ge=1)
    bits: tuple[int, int]
    top1: _Accuracy
    top5: _Accuracy
    families: tuple[str, ...] = ()
    """Of each network; empty where the file has none."""

    @model_validator(mode="after")
    def _one_family_each(self) -> CardEvaluation:
        if self.families and len(self.families) != len(self.top1.graphs):
            raise ValueError(
                f"{len(self.families)} families of {len(self.top1.graphs)} networks are named"
            )
        return self

    @property
    def setting(self) -> str:
        """The bits as people write them."""
        weight, activation = self.bits
        return "float" if self.bits == (FLOAT_BITS, FLOAT_BITS) else f"W{weight}/A{activation}"

    def by_family(self) -> dict[str, float]:
        """Mean top-1 of each family, in order of their names."""
        accuracies: dict[str, list[float]] = {}
        for family, accuracy in zip(self.families, self.top1.graphs, strict=False):
            accuracies.setdefault(family, []).append(accuracy)
        return {family: statistics.fmean(accuracies[family]) for family in sorted(accuracies)}


def read_evaluations(paths: Sequence[str | Path]) -> list[CardEvaluation]:
    """The evaluations in files that `ghnqat evaluate --json FILE` wrote.

    Raises:
        ArgumentError: no list of files, or a file is missing or something else.
    """
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Sequence):
        raise ArgumentError(
            f"evaluations={paths!r} is not a list of files. Write evaluations=['w4a4.json']."
        )
    return [_read_evaluation(path) for path in paths]


def _read_evaluation(path: str | Path) -> CardEvaluation:
    try:
        return CardEvaluation.model_validate_json(Path(path).read_bytes())
    except (OSError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{str(path)!r} is no evaluation ({_reason(error)}). Pass a file that "
            "`ghnqat evaluate --json FILE` wrote."
        ) from error


def _reason(error: Exception) -> str:
    return problems(error, most=1) if isinstance(error, ValidationError) else str(error)


def model_card(
    config: HypernetworkConfig,
    repo_id: str,
    *,
    data: str | None = None,
    license: str | None = None,
    evaluations: Sequence[CardEvaluation] = (),
) -> str:
    """A model card in Markdown: use, data, figures in all and by family, limits, license,
    citations.

    Args:
        config: Of the hypernetwork.
        repo_id: Where it is published.
        data: The data set that it was trained on, in words.
        license: Of the weights, by the Hub's names, such as "apache-2.0".
        evaluations: A row of figures each, in this order.
    """
    head = _HEAD.format(
        name=repo_id.partition("/")[2],
        repo_id=repo_id,
        classes=config.num_classes,
        size=config.images.size,
        data=data or "A data set that is not named here",
        license_line=f"license: {license}\n" if license else "",
    )
    terms = [_LICENSE.format(license=license)] if license else []
    return "\n".join([head, *_figures(repo_id, evaluations), _LIMITS, *terms, _CITATION])


def _figures(repo_id: str, evaluations: Sequence[CardEvaluation]) -> list[str]:
    if not evaluations:
        return [_NO_FIGURES.format(repo_id=repo_id)]
    totals = _table(
        ["networks", "number", "bits", "top-1", "top-5", "images", "protocol"],
        [_total(evaluation) for evaluation in evaluations],
    )
    families = [evaluation for evaluation in evaluations if evaluation.families]
    parts = [_FIGURES.format(totals=totals)]
    return [*parts, _FAMILIES.format(families=_family_table(families))] if families else parts


def _total(evaluation: CardEvaluation) -> list[str]:
    return [
        f"{evaluation.space} {evaluation.split}",
        str(len(evaluation.top1.graphs)),
        evaluation.setting,
        str(evaluation.top1),
        str(evaluation.top5),
        str(evaluation.images),
        evaluation.protocol,
    ]


def _family_table(evaluations: Sequence[CardEvaluation]) -> str:
    columns = [evaluation.by_family() for evaluation in evaluations]
    names = sorted({name for column in columns for name in column})
    header = ["family", *(f"{e.space} {e.split} {e.setting}" for e in evaluations)]
    rows = [
        [name, *(f"{column[name]:.1f}" if name in column else "" for column in columns)]
        for name in names
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
