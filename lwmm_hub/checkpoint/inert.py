"""The names that a pickle may hold beside tensors: tables, and the whole policy.

Nothing named here is imported or called. What training runs save beside weights (arguments,
configurations, histories, dates, losses) is read over: an instance becomes an `Opaque`, in which
tensors are counted and nothing else is read. Every name that is in no table is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lwmm_hub.checkpoint.entries import DTYPE_CODES

# name of the class in torch, or torch.cuda -> safetensors dtype
STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
STORAGE_TYPES: dict[str, str | None] = {
    **{f"{module}.{name}": d for module in ("torch", "torch.cuda") for name, d in STORAGES.items()},
    "torch.storage.UntypedStorage": None,
    "torch.storage._UntypedStorage": None,
    "torch.UntypedStorage": None,
}
_OTHER_STORAGES = ("ComplexDouble", "QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
# dtypes without a safetensors code may be named in hyperparameters, not be a tensor's
_OTHER_DTYPES = (
    *("complex32", "complex128", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)

# module -> classes and functions that hyperparameters refer to
_REFERRED = {
    "builtins": "Ellipsis bool dict float int list str tuple",
    "numpy": "bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",  # keys, before version 1.5
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
    "torch": "relu sigmoid tanh",
    "torch._C._nn": "gelu silu",
    "torch.nn.functional": "elu gelu leaky_relu relu relu6 silu",
    "typing": "Any",
}

# module -> classes whose instances are of no use for weights
_CARRIERS = {
    "builtins": "bytearray complex frozenset range set slice",
    "argparse": "Namespace",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "functools": "partial",
    "types": "SimpleNamespace",
    "uuid": "UUID",
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    ),
    # configurations
    "addict.addict": "Dict",
    "detectron2.config.config": "CfgNode",
    "easydict": "EasyDict",
    "fvcore.common.config": "CfgNode",
    "mmcv.utils.config": "Config ConfigDict",
    "mmengine.config.config": "Config ConfigDict",
    "munch": "Munch",
    "omegaconf.base": "ContainerMetadata Metadata SCMode",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode "
    "InterpolationResultNode PathNode StringNode",
    "yacs.config": "CfgNode",
    **dict.fromkeys(
        ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"), "AttributeDict"
    ),
    **dict.fromkeys(
        ("lightning.pytorch.utilities.parsing", "pytorch_lightning.utilities.parsing"),
        "AttributeDict",
    ),
    # histories; protocol 2 reaches their methods by `getattr`
    "mmengine.logging.history_buffer": "HistoryBuffer HistoryBuffer.current HistoryBuffer.max "
    "HistoryBuffer.mean HistoryBuffer.min",
    # of training
    "torch": "device",
    "torch._C": "_VariableFunctionsClass",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
    "torch.nn.modules.activation": "ELU GELU Hardswish Hardtanh LeakyReLU Mish PReLU ReLU ReLU6 "
    "SELU SiLU Sigmoid Softmax Softplus Tanh",
    "torch.nn.modules.batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "torch.nn.modules.instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "torch.nn.modules.linear": "Identity",
    "torch.nn.modules.loss": "BCELoss BCEWithLogitsLoss CosineEmbeddingLoss CrossEntropyLoss "
    "GaussianNLLLoss HuberLoss KLDivLoss L1Loss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss "
    "SoftMarginLoss TripletMarginLoss",
    "torch.nn.modules.normalization": "GroupNorm LayerNorm RMSNorm",
    "torch.optim.adam": "Adam",
    "torch.optim.adamax": "Adamax",
    "torch.optim.adamw": "AdamW",
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR "
    "ExponentialLR LambdaLR LinearLR MultiStepLR MultiplicativeLR OneCycleLR PolynomialLR "
    "ReduceLROnPlateau SequentialLR StepLR",
    "torch.optim.rmsprop": "RMSprop",
    "torch.optim.sgd": "SGD",
    "torchvision.transforms.functional": "InterpolationMode",
    "torchvision.transforms.v2.functional._utils": "InterpolationMode",
    # numpy's scalars
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "scalar"),
}


def _names(table: Mapping[str, str]) -> Iterator[str]:
    for module, names in table.items():
        yield from (f"{module}.{name}" for name in names.split())


# may be named; has no call
NAMED = frozenset(
    {
        *STORAGE_TYPES,
        *(f"torch.{name}Storage" for name in _OTHER_STORAGES),
        *(f"torch.{name}" for name in (*DTYPE_CODES, *_OTHER_DTYPES)),
        "numpy.ndarray",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        *_names(_REFERRED),
    }
)

# may be "called", and so may what `getattr` finds in it: the result is Opaque
INERT = frozenset(_names(_CARRIERS))

# as Python 2 calls them, and protocol 2 for its sake
PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
PYTHON_2_NAMES = {
    "builtins.long": "builtins.int",
    "builtins.unicode": "builtins.str",
    "builtins.xrange": "builtins.range",
}

# called by name, refused with a reason better than "not allowed"
OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device 'meta')",
}
