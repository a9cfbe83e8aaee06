"""Laying a model over the devices that are there. `mesh_shape` and `layout` are hints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.config.layouts import collision, dimension_sizes
from gpt_neo.config.schema import MeshConfig, RunConfig
from gpt_neo.errors import ConfigError, DeviceError
from gpt_neo.mtf_compat import SimdMeshImpl, Tensor, lower_locally, mtf, tf
from gpt_neo.runtime.stacks import StackedSlices, make_stacks


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """How a graph is lowered.

    devices: TensorFlow device names; one empty name is "wherever TensorFlow likes".
    mesh_shape, layout: pairs, empty on one device.
    note: what was done differently from the config, for the person to read.
    target: of the session; "" is this process.
    chief: the task of a cluster that holds all that is not on the mesh.
    """

    devices: tuple = ("",)
    mesh_shape: tuple = ()
    layout: tuple = ()
    note: Optional[str] = None
    target: str = ""
    chief: str = ""

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    def replicas(self, dimension: str = "batch") -> int:
        """Parts that a tensor dimension is split into."""
        sizes = dict(self.mesh_shape)
        return math.prod(sizes[mesh_dim] for name, mesh_dim in self.layout if name == dimension)

    def whole_parts(self, rows: int) -> int:
        """As many rows, or the few more that the layout can split over its replicas."""
        parts = self.replicas()
        return -(-rows // parts) * parts


def whole_mesh(config: MeshConfig) -> MeshPlan:
    """The mesh of a config as it stands, where it is the devices that have to fit: TPUs, exported programs."""
    return MeshPlan(("",), config.mesh_shape, config.layout)


def plan_mesh(config: MeshConfig, devices: Sequence[str] = (), owner: str = "--gpu_ids names") -> MeshPlan:
    """Fit the hints of a config to devices.

    Args:
      owner: whose they are, for the error.

    Raises:
      DeviceError: several devices, and not as many as mesh_shape multiplies to.
    """
    wanted = math.prod(size for _, size in config.mesh_shape)
    text = ",".join(f"{name}:{size}" for name, size in config.mesh_shape)
    if len(devices) <= 1:
        note = f"mesh_shape {text} asks for {wanted} devices; running on one" if wanted > 1 else None
        return MeshPlan(devices=tuple(devices) or ("",), note=note)
    if not config.mesh_shape:
        return MeshPlan(tuple(devices), (("x", len(devices)),), (("batch", "x"),), "layout batch:x, as none was given")
    if wanted != len(devices):
        raise DeviceError(
            f"mesh_shape {text} multiplies to {wanted} devices, {owner} {len(devices)}: "
            f"give as many, or --set mesh_shape=x:{len(devices)}"
        )
    return MeshPlan(tuple(devices), config.mesh_shape, config.layout)


def sees_gpu() -> bool:
    """Whether TensorFlow has a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def check_visible(devices: Sequence[str]) -> None:
    """Compare GPU names with what TensorFlow sees; CPU devices are made as asked for.

    Raises:
      DeviceError: a GPU is not there.
    """
    visible = [device.name.replace("/physical_device", "/device") for device in tf.config.list_physical_devices("GPU")]
    for name in devices:
        if "GPU" in name and name not in visible:
            raise DeviceError(f"--gpu_ids names {name}; TensorFlow sees {', '.join(visible) or 'no GPU'}")


def check_layout(run: RunConfig, plan: MeshPlan, batch_size: int) -> None:
    """Every split dimension has to divide, and no tensor can be split twice over one mesh dimension.

    Raises:
      ConfigError: names dimension, both sizes and the nearest valid ones; or the two dimensions.
    """
    sizes, mesh = {**dimension_sizes(run), "batch": batch_size}, dict(plan.mesh_shape)
    pair = collision(tuple(rule for rule in plan.layout if rule[0] in sizes))
    if pair:
        axis = dict(plan.layout)[pair[0]]
        raise ConfigError(f"layout puts {pair[0]} and {pair[1]} on {axis!r}, and there are tensors that have both")
    for name, mesh_dim in plan.layout:
        size, parts = sizes.get(name), mesh.get(mesh_dim, 1)
        if size is not None and size % parts:
            near = sorted({max(parts, size // parts * parts), -(-size // parts) * parts})
            raise ConfigError(
                f"layout {name}:{mesh_dim} splits {name} of {size} into {parts} parts; it has to divide "
                f"(nearest: {' or '.join(map(str, near))})"
            )


class LocalPlacement:
    """Lowers graphs onto local devices as planned."""

    in_place, counts = True, True

    def __init__(self, plan: MeshPlan) -> None:
        self.plan = plan
        self.mesh_shape, self.layout = plan.mesh_shape, plan.layout
        self.replicas = plan.replicas()

    def make_mesh(self, graph: mtf.Graph) -> mtf.Mesh:
        """The mesh of a new mtf.Graph."""
        return mtf.Mesh(graph, "mesh")

    def lower(self, graph: mtf.Graph, mesh: mtf.Mesh) -> mtf.Lowering:
        """mtf.Lowering of a finished graph."""
        plan = self.plan
        if plan.size == 1:
            return lower_locally(graph, mesh)
        shape, rules = mesh_strings(plan.mesh_shape, plan.layout)
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape, rules, list(plan.devices))
        return mtf.Lowering(graph, {mesh: impl}, autostack=False)


class GatheringMesh(SimdMeshImpl):
    """Mesh-TF's lowering for TPU cores, which can give out tensors that are split too."""

    def export_to_tf_tensor(self, x: Tensor, laid_out_x: tf.Tensor) -> tf.Tensor:
        """The whole tensor, on every core."""
        for place, axis in enumerate(self.tensor_layout(x.shape).tensor_axis_to_mesh_axis):
            if axis is not None:
                laid_out_x = self.allconcat(laid_out_x, axis, place)
        return laid_out_x.to_laid_out_tensor().one_slice


class StackingMesh(GatheringMesh):
    """A mesh of TPU cores on which variables of one shape are one variable: see `stacks.py`."""

    def __init__(self, graph: mtf.Graph, *mesh: Any, **options: Any) -> None:
        super().__init__(*mesh, **options)
        self.stacks = make_stacks(graph, self, lambda joined: SimdMeshImpl.LaidOutVariable(joined, self))

    def LaidOutVariable(self, variable: Any, mesh_impl: Any) -> Any:  # noqa: N802  (Mesh-TF has a class of that name)
        """A variable of its own, or its place in a stack."""
        if variable.name not in self.stacks:
            return SimdMeshImpl.LaidOutVariable(variable, self)
        return StackedSlices(*self.stacks[variable.name], self)


class TpuPlacement:
    """Lowers graphs onto the cores of a TPU, from the context that TPUEstimator hands to the model function."""

    in_place, counts = False, True  # a stack is written once all of its new values are there

    def __init__(self, config: MeshConfig, context: Any) -> None:
        self.config, self.context = config, context
        plan = whole_mesh(config)
        self.mesh_shape, self.layout = plan.mesh_shape, plan.layout
        self.replicas = plan.replicas()
        cores = math.prod(size for _, size in config.mesh_shape)
        if cores != context.num_replicas:  # as TPUEstimator calls cores that all run the same program
            raise DeviceError(
                f"mesh_shape multiplies to {cores} cores, the TPU has {context.num_replicas}: --set mesh_shape=..."
            )

    def make_mesh(self, graph: mtf.Graph) -> mtf.Mesh:
        """The mesh of a new mtf.Graph; masters are spread over the hosts by size."""
        hosts = [self.context.tpu_host_placement_function(host_id=i) for i in range(self.context.num_hosts)]
        placer = mtf.utils.BalancedVariablePlacer(hosts, [300_000_000] * len(hosts))
        return mtf.Mesh(graph, "mesh", placer)

    def lower(self, graph: mtf.Graph, mesh: mtf.Mesh) -> mtf.Lowering:
        """mtf.Lowering of a finished graph."""
        shape, rules = mesh_strings(self.config.mesh_shape, self.config.layout)
        impl = StackingMesh(graph, shape, rules, device_assignment=self.context.device_assignment)
        return mtf.Lowering(graph, {mesh: impl}, autostack=False)


def mesh_strings(mesh_shape: Sequence, layout: Sequence) -> tuple:
    """Mesh-TF's shape and layout rules from pairs.

    What experts see of the batch is split as the batch is, unless the experts themselves are on that axis: without
    the rule every replica would compute the tokens of all.
    """
    rules = dict(layout)
    if "batch" in rules and rules.get("experts") != rules["batch"]:
        layout = [("expert_batch", rules["batch"]), *layout]
    shape = mtf.convert_to_shape(",".join(f"{n}:{s}" for n, s in mesh_shape))
    return shape, mtf.convert_to_layout_rules(",".join(f"{n}:{m}" for n, m in layout))


def on_chief(plan: MeshPlan) -> Optional[Callable[[tf.Operation], str]]:
    """A device function that puts what has no task of a cluster on its chief; None without a cluster."""
    if not plan.chief:
        return None
    default = tf.DeviceSpec.from_string(plan.chief)
    return lambda op: default.make_merged_spec(tf.DeviceSpec.from_string(op.device)).to_string()


def session_config(plan: MeshPlan) -> tf.ConfigProto:
    """Session options: as many CPU devices as the plan names, GPU memory as it is needed."""
    cpus = max([1] + [int(name.rsplit(":", 1)[-1]) + 1 for name in plan.devices if "CPU" in name])
    config = tf.ConfigProto(allow_soft_placement=True, device_count={"CPU": cpus})
    config.gpu_options.allow_growth = True
    return config


def session_beside(plan: MeshPlan, graph: tf.Graph, plain: bool = False) -> tf.Session:
    """A session whose variables are its own: on a server those of one name would be those of the training, too.

    Args:
      plain: leave the graph optimizer out; the graph is as it should be, and its copies would stay in memory.
    """
    config = session_config(plan)
    config.isolate_session_state = True
    config.graph_options.rewrite_options.disable_meta_optimizer = plain
    return tf.Session(plan.target, graph=graph, config=config)
