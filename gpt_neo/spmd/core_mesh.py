"""Mesh-TF's lowering for TPU cores as a plain graph of one core: a pure function of its number, a batch and its slices.

Collectives are calls by name that `stablehlo.py` turns into StableHLO's own: TensorFlow 2.15 has no operation for an
all-gather, and Mesh-TF makes do with an all-reduce of zeros, which moves twice the bytes and needs n times the memory.
"""

from __future__ import annotations

import json
import math
from typing import Any, Callable, Optional

from gpt_neo.config.schema import MeshConfig
from gpt_neo.mtf_compat import LaidOut, mtf, tf
from gpt_neo.runtime.mesh import GatheringMesh, MeshPlan, mesh_strings
from gpt_neo.runtime.stacks import SliceInput
from gpt_neo.spmd.mlir import named_call

SMALL = 8  # cores whose sums of bfloat16 terms are made in bfloat16, as in Mesh-TF


class CoreMesh(GatheringMesh):
    """A mesh of cores that all run this one graph, for any number of lowerings over the same variables.

    core: int32 scalar input, the number of the core. slices: variable name -> (mtf.Variable, SliceInput).
    scattered: largest group of cores whose sum of bfloat16 terms is made in bfloat16 where each keeps a part of it.
    """

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, scattered: int = SMALL) -> None:
        super().__init__(shape, layout)
        self.scattered = scattered
        self.core = tf.placeholder(tf.int32, [], "core")
        self._pnum_tensor = self.core
        self.slices: dict[str, tuple] = {}

    class LaidOutVariable:
        """A variable as one graph input."""

        def __init__(self, variable: mtf.Variable, mesh_impl: mtf.MeshImpl) -> None:
            self.variable = variable
            if variable.name not in mesh_impl.slices:
                shape = mesh_impl.slice_shape(variable.outputs[0].shape)
                fresh = SliceInput(tf.placeholder(variable.slice_dtype, shape, "slice"))
                mesh_impl.slices[variable.name] = variable, fresh
            self.slice = mesh_impl.slices[variable.name][1]
            self.laid_out_tensor = mesh_impl.LaidOutTensor([self.slice.value])

        def assign_to_slices(
            self, assign_fn: Callable[..., tf.Tensor], values: list, assign_to_tensor_list: Optional[list] = None
        ) -> tf.Tensor:
            """Record the new value of the slice."""
            return assign_fn(self.variable, self.slice, values[0])

    def groups(self, axes: list) -> list:
        """Cores that differ only in their places along some mesh axes, in the order of these places."""
        return self._create_group_assignment(axes)

    def call(self, name: str, x: LaidOut, shape: list, **options: Any) -> LaidOut:
        """A collective, by name: see `stablehlo.COLLECTIVES`."""
        return self.LaidOutTensor([named_call(name, x, shape, json.dumps(options))])

    def allreduce(self, x: LaidOut, mesh_axes: list, reduction_fn_string: str) -> LaidOut:
        """Sum, largest or smallest over the cores along some axes."""
        x = x.to_laid_out_tensor()
        mesh_axes = [axis for axis in mesh_axes if self.shape[axis].size > 1]
        if not mesh_axes:
            return x
        groups, given = self.groups(mesh_axes), x.one_slice
        wide = wide_enough(given, groups, SMALL)
        kind = {"SUM": "add", "MAX": "maximum", "MIN": "minimum"}[reduction_fn_string]
        out = self.call("all_reduce", wide, wide.shape.as_list(), groups=groups, kind=kind)
        return self.LaidOutTensor([tf.cast(out.one_slice, given.dtype)])

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int, stack: bool = False) -> LaidOut:
        """Parts of a tensor that the cores along an axis hold, put together on each of them."""
        part = x.to_laid_out_tensor().one_slice
        if stack:
            part = tf.expand_dims(part, concat_axis)
        groups, shape = self.groups([mesh_axis]), part.shape.as_list()
        if len(groups[0]) == 1:
            return self.LaidOutTensor([part])
        shape[concat_axis] *= len(groups[0])
        return self.call("all_gather", part, shape, groups=groups, axis=concat_axis)

    def allsplit(self, x: LaidOut, mesh_axis: int, split_axis: int, which: Optional[tf.Tensor] = None) -> LaidOut:
        """This core's part along a dimension. Of a sum still to be made over that axis, only the part is made."""
        if which is not None or not isinstance(x, mtf.ops.LazyAllreduceSum) or mesh_axis not in x.mesh_axes:
            return super().allsplit(x.to_laid_out_tensor(), mesh_axis, split_axis, which)
        given, groups = x.laid_out_input.one_slice, self.groups([mesh_axis])
        if len(groups[0]) == 1:
            return x.to_laid_out_tensor()
        shape = given.shape.as_list()
        shape[split_axis] //= len(groups[0])
        wide = wide_enough(given, groups, self.scattered)
        out = self.call("reduce_scatter", wide, shape, groups=groups, axis=split_axis)
        part = self.LaidOutTensor([tf.cast(out.one_slice, given.dtype)])
        others = [axis for axis in x.mesh_axes if axis != mesh_axis]
        return mtf.ops.LazyAllreduceSum(self, part, others) if others else part

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Split along one dimension, send the parts around, join along another; in the type that is given."""
        part = x.to_laid_out_tensor().one_slice
        groups, shape = self.groups([mesh_axis]), part.shape.as_list()
        shape[split_axis] //= len(groups[0])
        shape[concat_axis] *= len(groups[0])
        return self.call("all_to_all", part, shape, groups=groups, split=split_axis, axis=concat_axis)

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: list) -> LaidOut:
        """Take what the core at place source_pcoord[k] has, at place k of an axis; zeros where that is None."""
        pairs = []
        for core in range(self.size):
            place = mtf.ops.pnum_to_processor_coordinates(self.shape, core)
            source = source_pcoord[place[mesh_axis]]
            if source is not None:
                place[mesh_axis] = source
                pairs.append([mtf.ops.processor_coordinates_to_pnum(self.shape, place), core])
        part = x.to_laid_out_tensor().one_slice
        return self.call("collective_permute", part, part.shape.as_list(), pairs=pairs)

    def slice(self, tf_tensor: tf.Tensor, tensor_shape: mtf.Shape) -> LaidOut:
        """This core's part of a tensor that every core has; offsets come from its number, not from a table."""
        layout, whole = self.tensor_layout(tensor_shape), tf.convert_to_tensor(tf_tensor)
        if layout.is_fully_replicated:
            return self.LaidOutTensor([whole])
        sizes = self.slice_shape(tensor_shape)
        begin = [
            tf.constant(0) if axis is None else self.laid_out_pcoord(axis).one_slice * size
            for axis, size in zip(layout.tensor_axis_to_mesh_axis, sizes)
        ]
        return self.LaidOutTensor([tf.slice(whole, tf.stack(begin), sizes)])


class CorePlacement:
    """Lowers graphs for one core of the mesh of a config.

    impl: the CoreMesh of all of them; None before the first.
    """

    in_place, counts = False, False  # variables are inputs, their new values outputs

    def __init__(self, config: MeshConfig) -> None:
        plan = MeshPlan(("",), config.mesh_shape or (("all", 1),), config.layout)
        self.mesh_shape, self.layout = plan.mesh_shape, plan.layout
        self.replicas = plan.replicas()
        self.cores = math.prod(size for _, size in plan.mesh_shape)
        self.scattered = self.cores if config.gradient_sums_dtype == "bfloat16" else SMALL
        self.impl: Any = None

    def make_mesh(self, graph: mtf.Graph) -> mtf.Mesh:
        """The mesh of a new mtf.Graph."""
        return mtf.Mesh(graph, "mesh")

    def core_mesh(self) -> CoreMesh:
        """The mesh of this core, made at the first call."""
        if self.impl is None:
            shape, rules = mesh_strings(self.mesh_shape, self.layout)
            self.impl = CoreMesh(shape, rules, self.scattered)
        return self.impl

    def lower(self, graph: mtf.Graph, mesh: mtf.Mesh) -> mtf.Lowering:
        """mtf.Lowering of a finished graph."""
        return mtf.Lowering(graph, {mesh: self.core_mesh()}, autostack=False)


def wide_enough(x: tf.Tensor, groups: list, largest: int) -> tf.Tensor:
    """x in the type that it is added up in: float32, or bfloat16 in groups of so many cores at most."""
    small = x.dtype == tf.bfloat16 and len(groups[0]) <= largest
    return x if small or x.dtype == tf.float32 else tf.cast(x, tf.float32)
