"""Norm statistics and static activation ranges from data: what makes evaluation independent of the
batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, get_args

from torch import Tensor, nn

from ghnqat_sdk.advice import run_batch
from ghnqat_sdk.calls import Call
from ghnqat_sdk.checks import is_number
from ghnqat_sdk.errors import ArgumentError, UnfamiliarDataWarning
from ghnqat_sdk.graph.refusals import refuse_wrapped
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.quantization.added import stale_statistics, take_in_norms
from ghnqat_sdk.quantization.calibration_report import CalibrationReport, collapsed
from ghnqat_sdk.quantization.chunks import chunks_of
from ghnqat_sdk.quantization.histograms import mean_squared_error_range, percentile_range
from ghnqat_sdk.quantization.lookup import not_fake_quantized
from ghnqat_sdk.quantization.normalized import images_of, not_normalized
from ghnqat_sdk.quantization.norms import batchwise_norms, calibrated_norms, count_batches
from ghnqat_sdk.quantization.observers import Method, Observed, layers_with_ranges, observing
from ghnqat_sdk.quantization.state import restored_after_failure, signature_of, states_of

_METHODS: tuple[Method, ...] = get_args(Method)
_BY_DISTRIBUTION = ("percentile", "mse")
"""Methods that need to see how values are distributed, in passes of their own."""
_PERCENTILE = 99.9


def calibrate(
    qmodel: nn.Module,
    batches: Iterable[Any],
    *,
    method: Method = "auto",
    percentile: float | None = None,
    progress: bool = True,
) -> CalibrationReport:
    """Re-estimate batch-norm statistics and freeze activation ranges, in place, so that `.eval()`
    is deployable.

    Batch norm uses batch statistics meanwhile, and quantization is on. Batches are put together and
    cut again into chunks of 256 images (fewer of more than 112 x 112 pixels, but 64 or more), so
    that the result does not depend on the batch size. A batch norm's statistics are those of all
    values it saw: evaluation of no more than a chunk is that with batch statistics, whatever the
    bits. The range of a layer's input follows from `method`:

    - "auto": of the ranges with which the model quantizes 64 images each, which it was predicted
      for, the widest at 8 bits (of a layer that is called several times, the mean of its calls'
      widest) and the mean at fewer;
    - "mean": their mean at 8 bits, too;
    - "min-max": the smallest and the largest value;
    - "percentile": all values but `100 - percentile` percent on either side;
    - "mse": the range with the smallest mean squared error of quantization.

    The last two take three passes and keep the batches in memory. Learned steps (`learn_steps`)
    stay as they are.

    Args:
        qmodel: From `predict_quantized_params` or `from_float`.
        batches: Tensors (N, C, H, W), or tuples and lists as a DataLoader gives: the first n
            entries are the model's inputs, n as in the `example_inputs` that it was predicted with
            and otherwise one, what follows are labels. Or dicts: what forward takes by name, and
            labels as "label", "labels", "target", "targets" or "y". All tensors with dimensions
            have N rows; what has none is the same for all of them.
        method: How activation ranges are chosen.
        percentile: For the method of that name alone, in (50, 100]; 99.9 by default.
        progress: Show a bar, on terminals only.

    Returns:
        What was fixed. Calling again replaces it.

    Raises:
        ArgumentError: no batches, a batch that is no tensor, a dict with an entry that is neither
            input nor label, a model that is not fake-quantized, wrapped, compiled or cannot be run
            on the batches, values that are not finite, an unknown method, or a percentile for
            another one. The model is then as it was.

    Warns:
        UnfamiliarDataWarning: a predicted model gets images that are not normalized or keeps
            running statistics of other weights, or all that a layer gets comes to one level.
    """
    remarks: list[str] = []

    def look(first: Call) -> None:
        images = images_of(first)
        if images is not None and all(state.normalized for state in states_of(qmodel)):
            remarks.append(not_normalized(images))

    require_fake_quantized(qmodel)
    with restored_after_failure(qmodel):  # as where the warning is an error
        report = calibrate_and_look(
            qmodel, batches, look, method=method, percentile=percentile, progress=progress
        )
        remarks = [*filter(None, remarks), *report.remarks]
        if remarks:
            warnings.warn(" ".join(remarks), UnfamiliarDataWarning, stacklevel=2)
    return report


def calibrate_and_look(
    qmodel: nn.Module,
    batches: Iterable[Any],
    look: Callable[[Call], None],
    *,
    method: Method = "auto",
    percentile: float | None = None,
    progress: bool = True,
) -> CalibrationReport:
    """As `calibrate`, without its warning; `look` is called with the first images."""
    share = _checked_percentile(method, percentile)
    require_fake_quantized(qmodel)
    take_in_norms(qmodel)
    chunks: Iterable[Call] = _looked_at(chunks_of(batches, signature_of(qmodel)), look)
    observed = Observed(method)
    if method not in _BY_DISTRIBUTION:
        _observe(qmodel, chunks, observed, progress)
        ranges = _ranges(qmodel, observed, method, share)
    else:
        chunks = list(chunks)
        _observe(qmodel, chunks, observed, progress, norms=False)
        _observe_histograms(qmodel, chunks, observed, progress)
        ranges = _ranges(qmodel, observed, method, share)
        _observe_norms(qmodel, chunks, observed, ranges, progress)
    return _fix(qmodel, method, observed, ranges)


def _looked_at(chunks: Iterable[Call], look: Callable[[Call], None]) -> Iterable[Call]:
    """The same chunks; `look` is called with the first."""
    for index, chunk in enumerate(chunks):
        if index == 0:
            look(chunk)
        yield chunk


def _observe(
    qmodel: nn.Module,
    chunks: Iterable[Call],
    observed: Observed,
    progress: bool,
    norms: bool = True,
) -> None:
    """What layers get while the chunks run, and what norms do."""
    inputs = layers_with_ranges(qmodel)
    on_inputs = {n: observed.of_input(n, layer.input_quantizer) for n, layer in inputs.items()}
    on_norms = observed.of_norms(qmodel) if norms else {}
    with observing(qmodel, on_norms, on_inputs):
        _run(qmodel, chunks, observed, "calibrating", progress)
    if observed.images == 0:
        raise ArgumentError(
            "calibrate got no batches. Pass at least one tensor (N, C, H, W), better several "
            "hundred images."
        )


def _observe_histograms(
    qmodel: nn.Module, chunks: Iterable[Call], observed: Observed, progress: bool
) -> None:
    """A second pass, for the methods that choose ranges by the distribution."""
    layers = layers_with_ranges(qmodel)
    on_inputs = {
        name: observed.histogram_of_input(name, layers[name].input_quantizer)
        for name in observed.extremes
    }
    with observing(qmodel, {}, on_inputs):
        _run(qmodel, chunks, observed, "choosing ranges", progress)


def _observe_norms(
    qmodel: nn.Module,
    chunks: Iterable[Call],
    observed: Observed,
    ranges: dict[str, tuple[float, float]],
    progress: bool,
) -> None:
    """A third pass, for what norms get with the ranges that were chosen."""
    with observing(qmodel, observed.of_norms(qmodel), {}, ranges):
        _run(qmodel, chunks, observed, "taking statistics", progress)


def _ranges(
    qmodel: nn.Module, observed: Observed, method: Method, percentile: float
) -> dict[str, tuple[float, float]]:
    """Of the layers' inputs."""
    layers = layers_with_ranges(qmodel)
    return {
        name: _chosen(observed, name, layers[name].input_quantizer.bits, method, percentile)
        for name in observed.ranges
    }


def _fix(
    qmodel: nn.Module, method: Method, observed: Observed, ranges: dict[str, tuple[float, float]]
) -> CalibrationReport:
    """Write statistics and ranges into the model."""
    layers, norms = layers_with_ranges(qmodel), calibrated_norms(qmodel)
    statistics = _statistics(observed)
    for name, (mean, variance) in statistics.items():
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_(variance)
        count_batches(norms[name], observed.images)
        vars(norms[name])["reached"] = True
    for name, (low, high) in ranges.items():
        layers[name].input_quantizer.freeze(low, high)
    for state in states_of(qmodel):
        state.calibrated = True
    bits = {name: layers[name].input_quantizer.bits for name in ranges}
    unreached = [name for name in norms if name not in statistics]
    unreached += [name for name in layers if name not in ranges]
    lost = collapsed(observed.extremes, ranges, bits)
    return CalibrationReport(
        method,
        observed.images,
        bits,
        ranges,
        tuple(statistics),
        tuple(unreached),
        lost,
        stale_statistics(qmodel),
        batchwise_norms(qmodel),
    )


def _checked_percentile(method: Any, percentile: Any) -> float:
    """The percentile of the method of that name, by default 99.9."""
    if method not in _METHODS:
        raise ArgumentError(
            f"method={method!r} is unknown. Write one of {', '.join(map(repr, _METHODS))}."
        )
    if percentile is None:
        return _PERCENTILE
    if not is_number(percentile) or not 50 < percentile <= 100:
        raise ArgumentError(
            f"percentile={percentile!r} is not above 50 and at most 100. Write "
            f"method='percentile', percentile={_PERCENTILE}."
        )
    if method != "percentile":
        raise ArgumentError(
            f"percentile={percentile!r} is for method='percentile', and the method is {method!r}. "
            f"Write method='percentile', percentile={percentile!r}, or leave it out."
        )
    return float(percentile)


def _statistics(observed: Observed) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each norm's input."""
    found = {name: moments.result() for name, moments in observed.moments.items()}
    for name, (mean, variance) in found.items():
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise ArgumentError(
                f"The input of {name!r} was not finite while calibrating. Check the batches for "
                f"NaN and infinity, and normalize them as in training."
            )
    return found


def _chosen(
    observed: Observed, name: str, bits: int, method: Method, percentile: float
) -> tuple[float, float]:
    """The range of one layer's input."""
    low, high = observed.extremes[name]
    if method not in _BY_DISTRIBUTION:
        return observed.range_of_input(name, bits)
    if not low < high:
        return low, high
    counts = observed.histograms[name]
    if method == "percentile":
        return percentile_range(counts, low, high, percentile)
    return mean_squared_error_range(counts, low, high, bits)


def _run(
    qmodel: nn.Module, chunks: Iterable[Call], observed: Observed, what: str, progress: bool
) -> None:
    observed.images = 0
    for chunk in progress_bar(chunks, what) if progress else chunks:
        observed.rows = chunk.rows
        observed.images += chunk.rows
        run_batch(qmodel, chunk)


def require_fake_quantized(qmodel: Any) -> None:
    """Raises an ArgumentError unless something of `qmodel` can be calibrated."""
    if not isinstance(qmodel, nn.Module) or not states_of(qmodel):
        raise not_fake_quantized(qmodel, "calibrate")
    refuse_wrapped(qmodel, ArgumentError)
