"""Which class a module of a fake-quantized model has, and which it had before."""

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: FakeQuantizedConv1d,
    nn.Conv2d: FakeQuantizedConv2d,
    nn.Conv3d: FakeQuantizedConv3d,
    nn.ConvTranspose1d: FakeQuantizedConvTranspose1d,
    nn.ConvTranspose2d: FakeQuantizedConvTranspose2d,
    nn.ConvTranspose3d: FakeQuantizedConvTranspose3d,
    nn.Linear: FakeQuantizedLinear,
}
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: CalibratedBatchNorm1d,
    nn.BatchNorm2d: CalibratedBatchNorm2d,
    nn.BatchNorm3d: CalibratedBatchNorm3d,
    nn.SyncBatchNorm: CalibratedSyncBatchNorm,
    nn.InstanceNorm1d: CalibratedInstanceNorm1d,
    nn.InstanceNorm2d: CalibratedInstanceNorm2d,
    nn.InstanceNorm3d: CalibratedInstanceNorm3d,
}
_OURS = LAYERS | NORMS
_FLOAT = {ours: theirs for theirs, ours in _OURS.items()}


_made: dict[type, type[nn.Module]] = {}


def fake_quantized_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that stands for `kind`, a convolution, linear layer or norm, or derived from one."""
    if kind in _OURS:
        return _OURS[kind]
    if kind not in _made:
        _made[kind] = _subclass(kind)
    return _made[kind]


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    base = next((each for each in kind.__mro__ if each in _OURS), None)
    if base is not None and _runs_as(kind, base):
        ours: type = _OURS[base]
    elif BY_NAME[_row(kind)].statistics is not None:
        ours = CalibratedNorm
    else:
        ours = type(f"_OwnForward_{_row(kind)}", (_OwnForward,), {"op": _row(kind)})
    name = f"FakeQuantized{kind.__name__}"
    members = {
        "float_class": kind,
        "__reduce_ex__": _reduced,
        "__doc__": f"`{kind.__name__}`, fake-quantized.",
    }
    return type(name, (ours, kind), members)


def float_class(kind: type) -> type:
    """The class that `fake_quantized_class` stands in for, also where another was put over it since."""
    if kind in _FLOAT:
        return _FLOAT[kind]
    if "float_class" in vars(kind):
        return vars(kind)["float_class"]
    bases = tuple(float_class(base) for base in kind.__bases__)
    if bases == kind.__bases__:
        return kind
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, own)


def _runs_as(kind: type, base: type) -> bool:
    """Whether `kind` computes by the methods of `base`."""
    return all(
        getattr(kind, name, None) is getattr(base, name, None)
        for name in ("forward", "_conv_forward", "_output_padding")
    )


def _row(kind: type) -> str:
    """Name of the row of `graph.ops` whose modules `kind` is one of."""
    return next(op.name for op in BY_NAME.values() if issubclass(kind, op.modules))


def _reduced(layer: Any, protocol: Any) -> Any:
    """Pickles a layer by its float class, which can be imported; its own is made again."""
    state = object.__reduce_ex__(layer, protocol)[2]
    return _new_layer, (type(layer).float_class,), state


def _new_layer(kind: type[nn.Module]) -> nn.Module:
    ours = fake_quantized_class(kind)
    return ours.__new__(ours)


