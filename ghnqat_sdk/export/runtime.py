"""What ONNX Runtime makes of a model: its outputs, the kernels it chooses, the time it takes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError, ExportError

_CONVOLUTIONS = {"QLinearConv", "ConvInteger"}
_PRODUCTS = {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
_REPEATS = 5  # of which a time is the median


def packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime.

    Raises:
        ArgumentError: they are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ArgumentError(
            'ONNX is not installed. Write pip install "ghnqat-sdk[onnx]".'
        ) from error
    return onnx, runtime_package()


def runtime_package() -> Any:
    """The module onnxruntime, which is enough to run a file.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ArgumentError(
            'ONNX Runtime is not installed. Write pip install "ghnqat-sdk[onnx]", or pip install '
            "onnxruntime."
        ) from error
    return onnxruntime


def new_session(model: bytes | str, *, optimized: Path | None = None, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU, of a model's bytes or the path of its file.

    Args:
        model: Its bytes or path.
        optimized: Where ONNX Runtime writes the graph that it runs.
        threads: That compute one input; 0 for one on each core.
    """
    runtime = runtime_package()
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def require_opset(opset: int) -> None:
    """Raise for an opset of ONNX that the installed ONNX Runtime does not know.

    Raises:
        ArgumentError: the message has the versions.
    """
    onnx, runtime = packages()
    from onnx import TensorProto, helper

    node = helper.make_node("QuantizeLinear", ["x", "scale"], ["levels"])
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in node.input]
    output = helper.make_tensor_value_info("levels", TensorProto.UINT8, [])
    graph = helper.make_graph([node], "probe", inputs, [output])
    opsets = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(
        opsets
    )  # a runtime may know the opset and not onnx's IR
    model = helper.make_model(graph, opset_imports=opsets, ir_version=oldest)
    try:
        session_of(model)
    except ExportError as error:
        raise ArgumentError(
            f"ONNX Runtime {runtime.__version__} does not know opset {opset}, with which onnx "
            f"{onnx.__version__} would "
            f"write the file. Leave opset out, or install a newer onnxruntime."
        ) from error


def require_valid(model: Any) -> None:
    """Raise for a ModelProto that is not valid ONNX.

    Raises:
        ExportError: what is wrong with it.
    """
    onnx, _ = packages()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported model is not valid ONNX: {error}") from error


def session_of(model: Any, *, optimized: Path | None = None, threads: int = 0) -> Any:
    """`new_session` of a ModelProto or its bytes.

    Raises:
        ExportError: ONNX Runtime does not take the model.
    """
    content = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return new_session(content, optimized=optimized, threads=threads)
    except Exception as error:
        raise ExportError(f"ONNX Runtime refused the exported model: {error}") from error


def runner(model: Any) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A ModelProto, or its bytes, as a function; floating-point outputs are float32.

    Raises:
        ExportError: ONNX Runtime does not take the model, or later the inputs.
    """
    session = session_of(model)
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the exported model: {error}") from error
        return [torch.as_tensor(output).float() for output in outputs]

    return run


def integer_layers(content: bytes, others: str) -> tuple[int, int]:
    """How many convolutions ONNX Runtime runs in integers, and how many linear layers, read from
    the graph that it optimizes; nodes whose names begin with `others` do not count."""
    onnx, _ = packages()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session_of(content, optimized=path)
        nodes = onnx.load(path).graph.node
        kinds = Counter(n.op_type for n in nodes if not n.name.startswith(others))
    convolutions, products = (
        sum(kinds[each] for each in group) for group in (_CONVOLUTIONS, _PRODUCTS)
    )
    return convolutions, products


def milliseconds(models: Sequence[bytes], inputs: Sequence[Tensor]) -> list[float]:
    """Median time of each model on the inputs, with one thread, the models in turn."""
    sessions = [session_of(content, threads=1) for content in models]
    feeds = [
        {each.name: x.numpy() for each, x in zip(s.get_inputs(), inputs, strict=True)}
        for s in sessions
    ]
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(_REPEATS + 1):
        for session, feed, mine in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if turn:  # the first run allocates
                mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]
