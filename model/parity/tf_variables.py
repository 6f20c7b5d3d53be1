"""Variables of the published TensorFlow code: files, names, and our parameter for each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peterrec.model.errors import ReferenceVariablesInvalid, TensorFileInvalid, TensorFlowMissing
from peterrec.model.files.tensors import read_tensors
from peterrec.model.insertions import INSERTIONS, InsertionName
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.heads import Head
from peterrec.model.network.patch import Patch
from peterrec.model.parity.npz import read_npz

EMBEDDING = "allitem_embeddings"
TARGETS = "target-item/allitem_embeddings_target"
SOFTMAX_CONV = ("logits/weight", "logits/bias")
SOFTMAX_TABLE = ("softmax_w", "softmax_b")
LAYER_NORM_EPS = 1e-8

BLOCK = re.compile(r"nextitnet_residual_blockdecoder_layer_(?P<index>\d+)_(?P<dilation>\d+)/")
PATCH_SCOPE = re.compile(BLOCK.pattern + r"(?P<scope>mp\w*)/mp_conv1_down_(?P<branch>\d+)/weight")
OPTIMIZER_STATE = frozenset({"Adam", "Adam_1", "beta1_power", "beta2_power"})


def block_prefix(index: int, dilation: int) -> str:
    """The scope of residual block ``index``, including the final slash."""
    return f"nextitnet_residual_blockdecoder_layer_{index}_{dilation}/"


def patch_scopes(insertion: InsertionName) -> dict[int, str]:
    """The scope of the bottleneck at each patched convolution (0 or 1) of a block."""
    return {0: "mp_1", 1: "mp_2"} if INSERTIONS[insertion].convs_per_block == 2 else {1: "mp"}


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Conversions between a variable's axes and our parameter's."""

    to_ours: Callable[[Tensor], Tensor] = _same
    to_reference: Callable[[Tensor], Tensor] = _same


PLAIN = Layout()
CONV = Layout(  # [1, k, Cin, Cout] <-> [Cout, Cin, k]
    lambda variable: variable[0].permute(2, 1, 0), lambda ours: ours.permute(2, 1, 0).unsqueeze(0)
)
POINTWISE = Layout(  # [1, 1, Cin, Cout] <-> [Cin, Cout]
    lambda variable: variable[0, 0], lambda ours: ours[None, None]
)
CLASSES = Layout(  # [1, 1, C, K] <-> [K, C]
    lambda variable: variable[0, 0].T, lambda ours: ours.T[None, None]
)


@dataclass(frozen=True, slots=True)
class Binding:
    """The part of one of our parameters that holds one variable."""

    parameter: nn.Parameter
    index: tuple[int, ...] = ()
    layout: Layout = PLAIN

    def value(self) -> Tensor:
        """Our values in the variable's layout."""
        return self.layout.to_reference(self.parameter.detach()[self.index])

    def gradient(self) -> Tensor:
        """Our gradient in the variable's layout; zero if there is none."""
        whole = self.parameter.grad
        own = torch.zeros_like(self.parameter) if whole is None else whole
        return self.layout.to_reference(own[self.index])

    def load(self, variable: Tensor) -> None:
        """Copy a variable of the right shape into our parameter."""
        self.parameter.detach()[self.index].copy_(self.layout.to_ours(variable))


Bindings = dict[str, Binding]


def bind_blocks(backbone: Backbone) -> Bindings:
    """Every variable of the residual blocks."""
    bound: Bindings = {}
    for index, block in enumerate(backbone.blocks):
        prefix = block_prefix(index, backbone.spec.dilations[index])
        for n in (1, 2):
            conv, norm = block.get_submodule(f"conv{n}"), block.get_submodule(f"norm{n}")
            own = conv.get_parameter
            bound[f"{prefix}dilated_conv{n}/weight"] = Binding(own("weight"), layout=CONV)
            bound[f"{prefix}dilated_conv{n}/bias"] = Binding(own("bias"))
            bound[f"{prefix}layer_norm{n}/gamma"] = Binding(norm.get_parameter("weight"))
            bound[f"{prefix}layer_norm{n}/beta"] = Binding(norm.get_parameter("bias"))
    return bound


def bind_patch(patch: Patch, dilations: tuple[int, ...]) -> Bindings:
    """Every bottleneck variable of every branch, and the second LayerNorms that a patch trains."""
    bound: Bindings = {}
    for row, block in enumerate(patch.geometry.blocks):
        prefix = block_prefix(block, dilations[block])
        for conv, scope in patch_scopes(patch.geometry.insertion).items():
            at = patch.geometry.conv_index(block, conv)
            assert at is not None
            for branch in range(patch.geometry.cardinality):
                bound |= _bind_branch(patch, (at, branch), f"{prefix}{scope}/mp_conv1")
        if patch.norm_weight is not None and patch.norm_bias is not None:
            bound[f"{prefix}layer_norm2/gamma"] = Binding(patch.norm_weight, (row,))
            bound[f"{prefix}layer_norm2/beta"] = Binding(patch.norm_bias, (row,))
    return bound


def _bind_branch(patch: Patch, index: tuple[int, int], scope: str) -> Bindings:
    branch = index[1]
    return {
        f"{scope}_down_{branch}/weight": Binding(patch.down, index, POINTWISE),
        f"{scope}_down_{branch}/bias": Binding(patch.down_bias, index),
        f"{scope}_up_{branch}/weight": Binding(patch.up, index, POINTWISE),
        f"{scope}_up_{branch}/bias": Binding(patch.up_bias, index),
    }


def bind_softmax_conv(head: Head) -> Bindings:
    """The causal pretraining head: a 1x1 convolution with bias."""
    assert head.bias is not None
    weight, bias = SOFTMAX_CONV
    return {weight: Binding(head.weight, layout=CLASSES), bias: Binding(head.bias)}


def bind_softmax_table(head: Head) -> Bindings:
    """The pretraining head of sampled softmax: a table [N, C] with bias."""
    assert head.bias is not None
    weight, bias = SOFTMAX_TABLE
    return {weight: Binding(head.weight), bias: Binding(head.bias)}


def bind_targets(head: Head) -> Bindings:
    """The head of a task: a table of target embeddings, no bias."""
    return {TARGETS: Binding(head.weight)}


def load_variables(bindings: Mapping[str, Binding], variables: Mapping[str, Tensor]) -> None:
    """Fill our parameters; refuse variables that are missing, misshapen or not finite."""
    problems = [f"{name} is missing" for name in bindings if name not in variables]
    for name, binding in bindings.items():
        expected = tuple(binding.value().shape)
        if name in variables and tuple(variables[name].shape) != expected:
            problems.append(f"{name} has shape {tuple(variables[name].shape)}, not {expected}")
        elif name in variables and not variables[name].isfinite().all():
            problems.append(f"{name} has numbers that are not finite")
    if problems:
        raise ReferenceVariablesInvalid(f"{'; '.join(problems)}.")
    for name, binding in bindings.items():
        binding.load(variables[name])


def read_variables(path: Path) -> dict[str, Tensor]:
    """Read float32 variables by name, without ``:0`` and without the optimizer's state.

    ``path`` is a safetensors or npz file, or the prefix of a TensorFlow checkpoint, which needs
    tensorflow.
    """
    raw = _reader_of(path)(path)
    named: dict[str, Tensor] = {}
    for full_name, tensor in raw.items():
        name = full_name.removesuffix(":0")
        if name in named:
            raise ReferenceVariablesInvalid(f"{path} has {name} twice, with and without `:0`.")
        if name.rsplit("/", 1)[-1] not in OPTIMIZER_STATE and tensor.is_floating_point():
            named[name] = tensor.float()
    return named


def _reader_of(path: Path) -> Callable[[Path], Mapping[str, Tensor]]:
    if path.suffix == ".safetensors":
        return read_tensors
    if path.suffix == ".npz":
        return _read_npz
    if Path(f"{path}.index").exists():
        return _read_checkpoint
    raise TensorFileInvalid(
        f"{path} is neither a .safetensors nor an .npz file nor the prefix of a TensorFlow "
        "checkpoint.",
        hint="A checkpoint's prefix is the path of its .index file without `.index`.",
    )


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The floating-point arrays; others (counters) are not variables of the network."""
    arrays = read_npz(path)
    return {name: torch.from_numpy(a) for name, a in arrays.items() if a.dtype.kind == "f"}


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        raise TensorFlowMissing(
            f"{path} is a TensorFlow checkpoint, and tensorflow is not installed.",
            hint="Install `peterrec-serving[reference]`, or convert the variables to npz by name.",
        ) from error
    try:
        reader = tensorflow.train.load_checkpoint(str(path))
        names = reader.get_variable_to_shape_map()
        return {name: torch.from_numpy(np.array(reader.get_tensor(name))) for name in names}
    except (tensorflow.errors.OpError, ValueError, TypeError) as error:
        raise TensorFileInvalid(f"{path} is not a readable checkpoint: {error}.") from error
