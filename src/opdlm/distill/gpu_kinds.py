"""GPUs by their makers' numbers. They are peaks: what a run reaches of them is assumed or measured, in `plan.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuKind:
    """Attributes:
    flops: dense bfloat16 products per second, no sparsity. bandwidth: bytes of its memory per second.
    memory: bytes. link: bytes per second that it sends to others of its node. source: where that is published.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float
    source: str


KINDS = {
    "a100": GpuKind(312e12, 2.039e12, 80e9, 300e9, "NVIDIA A100 80GB SXM datasheet"),
    "h100": GpuKind(989e12, 3.35e12, 80e9, 450e9, "NVIDIA H100 SXM datasheet"),
    "h200": GpuKind(989e12, 4.8e12, 141e9, 450e9, "NVIDIA H200 SXM datasheet"),
    "a6000": GpuKind(154.8e12, 0.768e12, 48e9, 32e9, "NVIDIA RTX A6000 datasheet, PCIe 4.0"),
    "l40s": GpuKind(362e12, 0.864e12, 48e9, 32e9, "NVIDIA L40S datasheet, PCIe 4.0"),
    "rtx4090": GpuKind(165.2e12, 1.008e12, 24e9, 32e9, "NVIDIA Ada GPU architecture whitepaper, PCIe 4.0"),
}
