"""Gradients of the network of a config: ours, and PyTorch's through the model file that exports carry."""

import contextlib
import dataclasses
import importlib.util
import os

import numpy as np
import pytest

from gpt_neo.checkpoint.custom import FILE, FOLDER
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import loss_and_gradients

BFLOAT16_MASK = np.uint32(0xFFFF0000)


def to_bfloat16(x):
    """float32 values that bfloat16 holds, near x (cut off, so that rounding is no question)."""
    return (np.asarray(x, np.float32).view(np.uint32) & BFLOAT16_MASK).view(np.float32)


class Network:
    """Loss and gradients of a config, in its precision, as the training step takes them; a session on one device."""

    def __init__(self, run, rows):
        with tf.Graph().as_default():
            tf.set_random_seed(1)
            graph = mtf.Graph()
            placement = LocalPlacement(MeshPlan())
            mesh = placement.make_mesh(graph)
            dims = make_dims(run.model, rows)
            self.tokens = tf.placeholder(tf.int32, [rows, run.model.n_ctx + 1])
            parts = {"inputs": self.tokens[:, :-1], "labels": self.tokens[:, 1:]}
            features = {name: mtf.import_tf_tensor(mesh, x, dims.tokens) for name, x in parts.items()}
            features["rows"] = mtf.range(mesh, dims.batch, tf.int32)
            loss, *grads = loss_and_gradients(graph, features, mtf.constant(mesh, 0, dtype=tf.int32), run, 1)
            lowering = placement.lower(graph, mesh)
            self.names = [variable.name for variable in graph.trainable_variables]
            self.tensors = [lowering.export_to_tf_tensor(x) for x in (loss, *grads)]
            self.variables = {v.op.name: v for v in tf.trainable_variables()}
            self.values = {name: v.read_value() for name, v in self.variables.items()}
            self.initializer = tf.global_variables_initializer()
            self.session = tf.Session()

    def __enter__(self):
        self.session.run(self.initializer)
        return self

    def __exit__(self, *_):
        self.session.close()

    def draw(self):
        """{name: initial value} of every weight, drawn anew, all of them numbers that bfloat16 holds."""
        self.session.run(self.initializer)
        return {name: to_bfloat16(x) for name, x in self.session.run(self.values).items()}

    def gradients(self, values, tokens):
        """(loss, {name: gradient}) of tokens [rows, n_ctx + 1]."""
        for name, variable in self.variables.items():
            self.session.run(variable.initializer, {variable.initializer.inputs[1]: values[name]})
        loss, *grads = self.session.run(self.tensors, {self.tokens: tokens})
        return float(loss), {name: np.float64(grad) for name, grad in zip(self.names, grads)}


def model_file():
    """The module that exports carry."""
    spec = importlib.util.spec_from_file_location(FILE, os.path.join(FOLDER, f"{FILE}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_gradients(run, values, batch, kind="float64"):
    """The same of PyTorch in float64, or multiplied in bfloat16 with float32 weights; the loss is that of the config.

    kind: `autocast` is PyTorch's, whose residual stream is float32; with `bfloat16` its parts hand on bfloat16.
    """
    torch = pytest.importorskip("torch")
    module = model_file()
    shapes = {name: list(x.shape) for name, x in values.items()}
    peer = module.GPTNeoMTFForCausalLM(module.GPTNeoMTFConfig(gpt_neo=dataclasses.asdict(run.model), variables=shapes))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(torch.tensor(values[name]))
    tokens, labels = torch.tensor(batch[:, :-1].astype(np.int64)), torch.tensor(batch[:, 1:].astype(np.int64))
    with contextlib.ExitStack() as stack:
        if kind == "bfloat16":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            for part in ("block", "attention", "mlp", "experts"):
                setattr(peer, part, rounded(getattr(peer, part)))
        elif kind == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        else:  # what the model file does in float32 is to be float64 too
            peer.double()
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        logits = peer(tokens).logits
    loss = peer_loss(torch, logits, labels, run.model)
    loss.backward()
    return float(loss.detach()), {n: p.grad.double().numpy() for n, p in peer.named_parameters()}


def rounded(part):
    """A part of the network that takes and gives bfloat16."""
    return lambda x, *others: part(x.bfloat16(), *others).bfloat16()


def peer_loss(torch, logits, labels, config):
    """Mean loss of logits [b, t, vocab] and labels [b, t], outside of any autocast."""
    target = logits.gather(-1, labels[..., None])[..., 0]
    if config.entmax_loss:
        power = 1 / (config.entmax_alpha - 1)
        scaled = logits.detach().double() * (config.entmax_alpha - 1)
        low, high = scaled.amax(-1, keepdim=True) - 1, scaled.amax(-1, keepdim=True)
        for _ in range(60):
            middle = (low + high) / 2
            enough = ((scaled - middle).clamp(min=0) ** power).sum(-1, keepdim=True) >= 1
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        p = (scaled - low).clamp(min=0) ** power
        alpha = config.entmax_alpha
        entropy = ((p - p**alpha) / (alpha * (alpha - 1))).sum(-1)
        # p is where the loss is largest, so that its own derivative does not count
        return ((p.to(logits.dtype) * logits).sum(-1) + entropy - target).mean()
    log_z = torch.logsumexp(logits, -1)
    return (log_z - target + config.z_loss * log_z**2).mean()


def relative(gradient, reference):
    """Norm of the difference over the norm of the reference."""
    return float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))
