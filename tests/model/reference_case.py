"""The published network, restated in plain numpy float64 with gradients derived by hand.

It shares no code with ``model/`` and writes folders in the format that ``check-golden`` reads.
``Equations`` can be made wrong on purpose; ``check-golden`` must then refuse the folder. Each step
returns its value and a backward function, which maps the value's gradient to the input's and adds
up the gradients of the variables. All steps accept complex numbers, so that the complex-step method
can check the gradients.
"""

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float64]
Ids = NDArray[np.int32]
Recorded = NDArray[np.float64] | NDArray[np.int32]
Step = tuple[Array, Callable[[Array], Array]]

ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "steps": 5}


@dataclass(frozen=True)
class Equations:
    """Rules of the network; the defaults are those of the published code."""

    eps: float = 1e-8
    gelu: str = "tanh"
    has_inner_skip: bool = True
    second_dilation: int = 2
    variance_ddof: int = 0
    zeroes_id_0: bool = False
    has_relu_before_softmax: bool = True
    is_patch_after_norm: bool = False
    regularizer: float = 0.02
    adam_corrects_eps: bool = False


@dataclass(frozen=True)
class Net:
    """Geometry and kind of one case."""

    name: str
    kind: str
    channels: int = 12
    dilations: tuple[int, ...] = (1, 2)
    kernel: int = 3
    is_causal: bool = True
    insertion: str = ""
    cardinality: int = 1
    item_size: int = 17
    target_size: int = 6
    shapes: tuple[tuple[int, int], ...] = ((4, 7), (1, 3))
    adam_eps: float = 1e-8

    def prefix(self, block: int) -> str:
        return f"nextitnet_residual_blockdecoder_layer_{block}_{self.dilations[block]}/"

    @property
    def scopes(self) -> tuple[str, ...]:
        return ("mp",) if self.insertion == "serial1" else ("mp_1", "mp_2")


def backbone_weights(net: Net, rng: np.random.Generator) -> dict[str, Array]:
    c, k = net.channels, net.kernel
    weights = {"allitem_embeddings": rng.normal(0, 0.05, (net.item_size, c))}
    for block in range(len(net.dilations)):
        for n in (1, 2):
            conv = f"{net.prefix(block)}dilated_conv{n}"
            norm = f"{net.prefix(block)}layer_norm{n}"
            weights[f"{conv}/weight"] = rng.normal(0, (c * k) ** -0.5, (1, k, c, c))
            weights[f"{conv}/bias"] = rng.normal(0, 0.03, c)
            weights[f"{norm}/gamma"] = rng.uniform(0.5, 1.5, c)
            weights[f"{norm}/beta"] = rng.normal(0, 0.2, c)
    return weights


def patch_weights(net: Net, rng: np.random.Generator) -> dict[str, Array]:
    c, h = net.channels, net.channels // (4 * net.cardinality)
    weights = {"target-item/allitem_embeddings_target": rng.normal(0, 0.05, (net.target_size, c))}
    for block in range(len(net.dilations)):
        for scope in net.scopes:
            for branch in range(net.cardinality):
                at = f"{net.prefix(block)}{scope}/mp_conv1"
                weights[f"{at}_down_{branch}/weight"] = rng.normal(0, 0.4, (1, 1, c, h))
                weights[f"{at}_down_{branch}/bias"] = rng.normal(0, 0.3, h)
                weights[f"{at}_up_{branch}/weight"] = rng.normal(0, 0.3, (1, 1, h, c))
                weights[f"{at}_up_{branch}/bias"] = rng.normal(0, 0.1, c)
    return weights


def head_weights(net: Net, rng: np.random.Generator) -> dict[str, Array]:
    c, n = net.channels, net.item_size
    if net.kind == "causal_pretrain":
        return {
            "logits/weight": rng.normal(0, 0.3, (1, 1, c, n)),
            "logits/bias": rng.normal(0, 0.1, n),
        }
    return {"softmax_w": rng.normal(0, 0.3, (n, c)), "softmax_b": rng.normal(0, 0.1, n)}


def shift(x: Array, offset: int) -> Array:
    """Shift: out[:, t] = x[:, t + offset], and zero outside."""
    steps = x.shape[1]
    out = np.zeros_like(x)
    low, high = max(0, -offset), min(steps, steps - offset)
    if low < high:
        out[:, low:high] = x[:, low + offset : high + offset]
    return out


def total(arrays: Sequence[Array]) -> Array:
    summed: Array = np.sum(np.stack(arrays), axis=0)
    return summed


def gelu(x: Array, form: str) -> tuple[Array, Array]:
    """The function's value and its derivative."""
    if form == "erf":
        cdf = np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)
        return x * cdf, cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if form == "relu":
        return np.where(x.real > 0, x, 0), (x.real > 0).astype(float)
    scale = math.sqrt(2 / math.pi)
    inner = np.tanh(scale * (x + 0.044715 * x**3))
    slope = (1 - inner**2) * scale * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + inner), 0.5 * (1 + inner) + 0.5 * x * slope


def relu(x: Array) -> Step:
    is_on = x.real > 0
    return np.where(is_on, x, 0), lambda gradient: np.where(is_on, gradient, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@dataclass
class Reference:
    """The network with its variables and, after ``backward``, their gradients."""

    net: Net
    weights: dict[str, Array]
    equations: Equations = field(default_factory=Equations)
    gradients: dict[str, Array] = field(default_factory=dict)

    def _add(self, name: str, gradient: Array) -> None:
        self.gradients[name] = self.gradients.get(name, 0) + gradient

    def embed(self, ids: Ids) -> Step:
        name = "allitem_embeddings"
        rows = self.weights[name][ids]
        keep = (ids != 0)[..., None] if self.equations.zeroes_id_0 else np.ones(1)

        def back(gradient: Array) -> Array:
            table = np.zeros(self.weights[name].shape, gradient.dtype)
            np.add.at(table, ids, gradient * keep)
            self._add(name, table)
            return gradient

        return rows * keep, back

    def conv(self, x: Array, name: str, dilation: int) -> Step:
        kernel = self.weights[f"{name}/weight"][0]
        k = len(kernel)
        center = k - 1 if self.net.is_causal else (k - 1) // 2
        offsets = [(j - center) * dilation for j in range(k)]
        out = np.einsum("jbtc,jcd->btd", np.stack([shift(x, o) for o in offsets]), kernel)

        def back(gradient: Array) -> Array:
            taps = [np.einsum("btc,btd->cd", shift(x, o), gradient) for o in offsets]
            self._add(f"{name}/weight", np.stack(taps)[None])
            self._add(f"{name}/bias", gradient.sum((0, 1)))
            back_taps = [
                shift(gradient @ tap.T, -o) for o, tap in zip(offsets, kernel, strict=True)
            ]
            return total(back_taps)

        return out + self.weights[f"{name}/bias"], back

    def norm(self, x: Array, name: str) -> Step:
        gamma, beta = self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"]
        centered = x - x.mean(-1, keepdims=True)
        count = x.shape[-1] - self.equations.variance_ddof
        root = np.sqrt((centered**2).sum(-1, keepdims=True) / count + self.equations.eps)
        unit = centered / root

        def back(gradient: Array) -> Array:
            self._add(f"{name}/gamma", (gradient * unit).sum((0, 1)))
            self._add(f"{name}/beta", gradient.sum((0, 1)))
            inner = gradient * gamma
            drift = unit * (inner * unit).sum(-1, keepdims=True) / count
            slope: Array = (inner - inner.mean(-1, keepdims=True) - drift) / root
            return slope

        return unit * gamma + beta, back

    def bottleneck(self, source: Array, scope: str) -> Step:
        """The output of the patch without its inner skip."""
        outs, backs = zip(
            *(self._branch(source, f"{scope}/mp_conv1", j) for j in range(self.net.cardinality)),
            strict=True,
        )
        return total(outs), lambda g: total([back(g) for back in backs])

    def _branch(self, source: Array, scope: str, branch: int) -> Step:
        down, up = f"{scope}_down_{branch}", f"{scope}_up_{branch}"
        d, u = self.weights[f"{down}/weight"][0, 0], self.weights[f"{up}/weight"][0, 0]
        hidden, slope = gelu(source @ d + self.weights[f"{down}/bias"], self.equations.gelu)

        def back(gradient: Array) -> Array:
            self._add(f"{up}/weight", np.einsum("bth,btc->hc", hidden, gradient)[None, None])
            self._add(f"{up}/bias", gradient.sum((0, 1)))
            inner = (gradient @ u.T) * slope
            self._add(f"{down}/weight", np.einsum("btc,bth->ch", source, inner)[None, None])
            self._add(f"{down}/bias", inner.sum((0, 1)))
            slope_in: Array = inner @ d.T
            return slope_in

        return hidden @ u + self.weights[f"{up}/bias"], back

    def half(self, x: Array, block: int, n: int) -> Step:
        """relu(LN(conv(x))), with the patch if the convolution has one."""
        prefix = self.net.prefix(block)
        factor = 1 if n == 1 else self.equations.second_dilation
        out, conv_back = self.conv(
            x, f"{prefix}dilated_conv{n}", factor * self.net.dilations[block]
        )
        scope = {"serial1": "" if n == 1 else "mp", "": ""}.get(self.net.insertion, f"mp_{n}")
        if not scope:
            normed, norm_back = self.norm(out, f"{prefix}layer_norm{n}")
            on, relu_back = relu(normed)
            return on, lambda g: conv_back(norm_back(relu_back(g)))
        if self.net.insertion == "parallel2":
            return self._parallel(x, (out, conv_back), prefix, scope, n)
        return self._serial((out, conv_back), prefix, scope, n)

    def _serial(self, conv: Step, prefix: str, scope: str, n: int) -> Step:
        out, conv_back = conv
        if self.equations.is_patch_after_norm:
            normed, norm_back = self.norm(out, f"{prefix}layer_norm{n}")
            added, patch_back = self.bottleneck(normed, prefix + scope)
            on, relu_back = relu(normed + added)
            return on, lambda g: conv_back(norm_back(relu_back(g) + patch_back(relu_back(g))))
        added, patch_back = self.bottleneck(out, prefix + scope)
        normed, norm_back = self.norm(out + added, f"{prefix}layer_norm{n}")
        on, relu_back = relu(normed)

        def back(gradient: Array) -> Array:
            joined = norm_back(relu_back(gradient))
            return conv_back(joined + patch_back(joined))

        return on, back

    def _parallel(self, x: Array, conv: Step, prefix: str, scope: str, n: int) -> Step:
        out, conv_back = conv
        added, patch_back = self.bottleneck(x, prefix + scope)
        skip = 1.0 if self.equations.has_inner_skip else 0.0
        normed, norm_back = self.norm(out + added + skip * x, f"{prefix}layer_norm{n}")
        on, relu_back = relu(normed)

        def back(gradient: Array) -> Array:
            joined = norm_back(relu_back(gradient))
            return conv_back(joined) + patch_back(joined) + skip * joined

        return on, back

    def hidden(self, ids: Ids) -> Step:
        x, embed_back = self.embed(ids)
        backs = []
        for block in range(len(self.net.dilations)):
            first, first_back = self.half(x, block, 1)
            second, second_back = self.half(first, block, 2)
            backs.append((first_back, second_back))
            x = x + second

        def back(gradient: Array) -> Array:
            for first_back, second_back in reversed(backs):
                gradient = gradient + first_back(second_back(gradient))
            return embed_back(gradient)

        return x, back


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.real.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def softmax_scores(model: Reference, hidden: Array) -> Step:
    """Scores of all items [..., N] for the pretraining heads."""
    if model.net.kind == "noncausal_pretrain":
        return hidden @ model.weights["softmax_w"].T + model.weights["softmax_b"], lambda g: g
    weight = model.weights["logits/weight"][0, 0]
    has_relu = model.equations.has_relu_before_softmax
    on, relu_back = relu(hidden) if has_relu else (hidden, lambda g: g)

    def back(gradient: Array) -> Array:
        model._add("logits/weight", np.einsum("btc,btn->cn", on, gradient)[None, None])
        model._add("logits/bias", gradient.sum((0, 1)))
        return relu_back(gradient @ weight.T)

    return on @ weight + model.weights["logits/bias"], back


def pretraining_loss(model: Reference, rows: Ids) -> tuple[Array, Callable[[], Array]]:
    """Mean cross-entropy over all positions."""
    hidden, hidden_back = model.hidden(rows[:, :-1])
    scores, scores_back = softmax_scores(model, hidden)
    labels = np.eye(model.net.item_size)[rows[:, 1:]]
    logs = log_softmax(scores)
    count = labels.shape[0] * labels.shape[1]
    loss = -(logs * labels).sum() / count
    return loss, lambda: hidden_back(scores_back((np.exp(logs) - labels) / count))


def user_of(model: Reference, rows: Ids) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Hidden states, user vectors, and a function that propagates gradients back from these."""
    hidden, hidden_back = model.hidden(rows[:, :-1] if model.net.is_causal else rows)

    def back(gradient: Array) -> Array:
        whole = np.zeros(hidden.shape, gradient.dtype)
        whole[:, -1] += gradient
        if not model.net.is_causal:
            whole[:, 0] += gradient
        return hidden_back(whole)

    user = hidden[:, -1] if model.net.is_causal else hidden[:, 0] + hidden[:, -1]
    return hidden, user, back


def finetuning_losses(
    model: Reference, user: Array, positive: Ids, negative: Ids
) -> dict[str, Array]:
    logits = user @ model.weights["target-item/allitem_embeddings_target"].T
    hit = np.take_along_axis(logits, positive, 1)
    miss = np.take_along_axis(logits, negative, 1)
    targets = model.weights["target-item/allitem_embeddings_target"]
    pair = -np.log(sigmoid(hit) + 1e-24) - np.log(1 - sigmoid(miss) + 1e-24)
    return {
        "loss_pair_ce": pair.mean(),
        "loss_bpr": -np.log(sigmoid(hit - miss)).mean(),
        "loss_reg": model.equations.regularizer * 0.5 * (targets**2).sum(),
    }


def finetuning_loss(
    model: Reference, rows: Ids, positive: Ids, negative: Ids
) -> tuple[Array, Callable[[], Array]]:
    """The pair cross-entropy and the regulariser."""
    name = "target-item/allitem_embeddings_target"
    targets = model.weights[name]
    _, user, user_back = user_of(model, rows)
    losses = finetuning_losses(model, user, positive, negative)

    def back() -> Array:
        logits = user @ targets.T
        slope = np.zeros(logits.shape, logits.dtype)
        rows_of = np.arange(len(rows))
        slope[rows_of, positive[:, 0]] -= 1 - sigmoid(logits[rows_of, positive[:, 0]])
        slope[rows_of, negative[:, 0]] += sigmoid(logits[rows_of, negative[:, 0]])
        slope /= len(rows)
        model._add(name, slope.T @ user + model.equations.regularizer * targets)
        return user_back(slope @ targets)

    return losses["loss_pair_ce"] + losses["loss_reg"], back


def inputs_of(net: Net, rng: np.random.Generator) -> list[dict[str, Ids]]:
    """Make four rows: full, padded on the left with id 5, ending in zeros, and with one item.

    [CLS] is id 0.
    """
    inputs = []
    for batch, steps in net.shapes:
        items = rng.integers(1, net.item_size, (batch, steps))
        items[1:2, : steps // 2] = 5
        items[2:3, steps // 2 :] = 0
        items[3:4] = net.item_size - 1
        zero = np.zeros((batch, 1), int)
        targets = rng.integers(1, net.target_size, (batch, 8))
        if net.kind == "noncausal_pretrain":
            items[:, -1] = 0
            arrays = {"itemseq": items}
        elif net.kind == "causal_pretrain":
            arrays = {"itemseq": items}
        elif net.is_causal:
            arrays = {"itemseq": np.concatenate([items, zero, targets[:, -1:]], 1)}
        else:
            arrays = {"itemseq": np.concatenate([zero, items, zero], 1)}
        if net.kind == "finetune":
            negative = (targets[:, -1:] + 1) % net.target_size
            arrays |= {"pos": targets[:, -1:], "neg": negative, "cand": targets}
        inputs.append({name: array.astype(np.int32) for name, array in arrays.items()})
    return inputs


def top(scores: Array, count: int = 5) -> Ids:
    """The best indices in float32; the lower index comes first among equal scores."""
    return np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :count].astype(np.int32)


def answers(model: Reference, given: dict[str, Ids]) -> dict[str, Recorded]:
    """Compute all recorded forward quantities of one input."""
    rows = given["itemseq"]
    if model.net.kind == "finetune":
        hidden, user, _ = user_of(model, rows)
        logits = user @ model.weights["target-item/allitem_embeddings_target"].T
        candidates = np.take_along_axis(logits, given["cand"], 1)
        losses = finetuning_losses(model, user, given["pos"], given["neg"])
        found: dict[str, Recorded] = {"hidden": hidden, "user": user, "logits": logits}
        return {**found, **losses, "cand_scores": candidates, "cand_top5": top(candidates)}
    is_causal = model.net.kind == "causal_pretrain"
    hidden, _ = model.hidden(rows[:, :-1] if is_causal else rows)
    logs = log_softmax(softmax_scores(model, hidden)[0][:, -1])
    found = {"hidden": hidden, "last_probs": np.exp(logs), "last_top5": top(np.exp(logs))}
    if is_causal:
        labels = rows[:, -1]
        found["loss"] = pretraining_loss(model, rows)[0]
        found["last_loss"] = -logs[np.arange(len(rows)), labels].mean()
    return found


def loss_of(model: Reference, given: dict[str, Ids]) -> tuple[Array, Callable[[], Array]]:
    if model.net.kind == "finetune":
        return finetuning_loss(model, given["itemseq"], given["pos"], given["neg"])
    return pretraining_loss(model, given["itemseq"])


def is_trained(net: Net, name: str) -> bool:
    if net.kind == "finetune":
        return "/mp" in name or "target-item" in name or "layer_norm2" in name
    return True


def training(model: Reference, given: dict[str, Ids]) -> dict[str, Array]:
    """Compute the gradients before training, and the values and losses of five Adam steps."""
    names = [name for name in model.weights if is_trained(model.net, name)]
    first = {name: np.zeros_like(model.weights[name]) for name in names}
    second = {name: np.zeros_like(model.weights[name]) for name in names}
    recorded: dict[str, Array] = {}
    losses = []
    for step in range(1, int(ADAM["steps"]) + 1):
        model.gradients.clear()
        loss, back = loss_of(model, given)
        back()
        losses.append(loss)
        if step == 1:
            recorded = {f"grad:{name}": model.gradients[name] for name in names}
        correction = math.sqrt(1 - ADAM["beta2"] ** step)
        rate = ADAM["lr"] * correction / (1 - ADAM["beta1"] ** step)
        eps = model.net.adam_eps * (correction if model.equations.adam_corrects_eps else 1.0)
        for name in names:
            gradient = model.gradients[name]
            first[name] = ADAM["beta1"] * first[name] + (1 - ADAM["beta1"]) * gradient
            second[name] = ADAM["beta2"] * second[name] + (1 - ADAM["beta2"]) * gradient**2
            moved = rate * first[name] / (np.sqrt(second[name]) + eps)
            model.weights[name] = model.weights[name] - moved
    losses.append(loss_of(model, given)[0])
    recorded |= {f"after:{name}": model.weights[name] for name in names}
    return {**recorded, "adam_losses": np.array(losses)}


def meta_of(net: Net) -> dict[str, object]:
    batch = "in0" if net.kind == "finetune" else "in0_itemseq"
    meta: dict[str, object] = {
        "kind": net.kind,
        "weights": f"weights_{net.name}.safetensors",
        "item_size": net.item_size,
        "channels": net.channels,
        "dilations": list(net.dilations),
        "kernel_size": net.kernel,
        "causal": net.is_causal,
    }
    if net.kind != "noncausal_pretrain":
        meta["adam"] = {**ADAM, "eps": net.adam_eps, "batch": batch}
    if net.kind == "finetune":
        meta |= {
            "patch": f"patch_{net.name}.safetensors",
            "target_size": net.target_size,
            "insertion": net.insertion,
            "cardinality": net.cardinality,
            "mp_hidden_per_branch": net.channels // (4 * net.cardinality),
        }
    else:
        meta["extra"] = f"weights_{net.name}_extra.safetensors"
    return meta


def rounded(weights: dict[str, Array]) -> dict[str, NDArray[np.float32]]:
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def write_case(
    folder: Path, net: Net, equations: Equations | None = None, seed: int = 3
) -> Reference:
    """Write the files of one case; return the network as it was before training."""
    rng = np.random.default_rng(seed)
    shared = rounded(backbone_weights(net, rng))
    is_task = net.kind == "finetune"
    own = rounded(patch_weights(net, rng) if is_task else head_weights(net, rng))
    save_file(shared, folder / f"weights_{net.name}.safetensors")
    own_file = f"patch_{net.name}" if is_task else f"weights_{net.name}_extra"
    save_file(own, folder / f"{own_file}.safetensors")
    weights = {name: w.astype(np.float64) for name, w in {**shared, **own}.items()}
    model = Reference(net, weights, equations or Equations())
    arrays: dict[str, NDArray[np.generic]] = {"meta": np.array(json.dumps(meta_of(net)))}
    inputs = inputs_of(net, rng)
    for number, given in enumerate(inputs):
        found: dict[str, Recorded] = {**given, **answers(model, given)}
        arrays |= {f"in{number}_{name}": _narrow(array) for name, array in found.items()}
    if net.kind != "noncausal_pretrain":
        trainee = Reference(net, dict(weights), model.equations)
        arrays |= {n: _narrow(a) for n, a in training(trainee, inputs[0]).items()}
    write_npz(folder / f"case_{net.name}.npz", arrays)
    return model


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _narrow(array: Recorded) -> NDArray[np.generic]:
    kept: NDArray[np.generic] = np.asarray(array)
    return kept if kept.dtype == np.int32 else kept.astype(np.float32)


def complex_step(model: Reference, given: dict[str, Ids], name: str, at: tuple[int, ...]) -> float:
    """Compute the derivative of the training loss by one entry of a variable, up to rounding."""
    weights = {n: w.astype(complex) for n, w in model.weights.items()}
    weights[name][at] += 1e-30j
    return float(loss_of(Reference(model.net, weights, model.equations), given)[0].imag / 1e-30)
