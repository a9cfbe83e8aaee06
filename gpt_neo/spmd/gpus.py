"""NVIDIA's cards: what is published of them, and what XLA's compiler has to be told of one that is not there."""

from __future__ import annotations

import dataclasses
import math

KEPT = 0.1  # of a card's memory: for CUDA's context, libraries and NCCL's buffers, outside of what JAX allocates from


@dataclasses.dataclass(frozen=True)
class Card:
    """A card on a board of eight that NVLink joins by a switch.

    peak: FLOP/s of tensor cores in bfloat16 and float16, without sparsity. tf32: of float32 inputs rounded to TF32.
    float32: of all other products. bandwidth: bytes/s of the memory. links: bytes/s over NVLink, one way.
    memory: bytes. capability: the first number of CUDA's compute capability. cores: multiprocessors, of which each has
    so many float32 units, GHz of its clock and bytes of shared memory. cache: bytes of L2.
    """

    name: str
    peak: float
    tf32: float
    float32: float
    bandwidth: float
    links: float
    memory: int
    capability: int
    cores: int
    units: int
    clock: float
    cache: int
    shared: int

    def seconds(self, kind: str, flops: float) -> float:
        """Time of so many FLOPs of matrix products at the peak of a kind: bf16, f16, tf32, or any other."""
        return flops / {"bf16": self.peak, "f16": self.peak, "tf32": self.tf32}.get(kind, self.float32)

    @property
    def usable(self) -> float:
        """Bytes that a program may have."""
        return self.memory * (1 - KEPT)

    @property
    def description(self) -> str:
        """A GpuTargetConfigProto, as text, like those in xla/backends/gpu/target_config/specs."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {self.shared - 1024}
  threads_per_core_limit: 2048 core_count: {self.cores} fpus_per_core: {self.units} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {math.floor(self.bandwidth)}
  l2_cache_size: {self.cache} clock_rate_ghz: {self.clock} device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


# peak, tf32, float32, bandwidth, links, and memory by its round name: NVIDIA's data sheets "A100 Tensor Core GPU" (SXM,
# 80 GB), "H100 Tensor Core GPU" (SXM) and "H200 Tensor Core GPU" (SXM). Those of H100 and H200 give tensor cores with
# sparsity, which is twice this, and all of them NVLink both ways together (600 and 900 GB/s). The rest: XLA's own specs
# a100_sxm_80, h100_sxm and h200 (xla/backends/gpu/target_config/specs).
A100 = Card(
    name="NVIDIA A100-SXM4-80GB",
    peak=312e12,
    tf32=156e12,
    float32=19.5e12,
    bandwidth=2.039e12,
    links=300e9,
    memory=85100068864,
    capability=8,
    cores=108,
    units=64,
    clock=1.41,
    cache=40 * 2**20,
    shared=164 * 2**10,
)
H100 = Card(
    name="NVIDIA H100 80GB HBM3",
    peak=989e12,
    tf32=494e12,
    float32=67e12,
    bandwidth=3.35e12,
    links=450e9,
    memory=84942979072,
    capability=9,
    cores=132,
    units=128,
    clock=1.98,
    cache=50 * 2**20,
    shared=228 * 2**10,
)
H200 = dataclasses.replace(H100, name="NVIDIA H200 141GB HBM3e", bandwidth=4.8e12, memory=151397597184)
CARDS = {"a100": A100, "h100": H100, "h200": H200}
SIZES = (1, 2, 4, 8)  # of one board
