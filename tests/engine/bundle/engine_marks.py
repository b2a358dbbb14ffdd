"""GPUs, and the fingerprint of an engine that was built for one of them."""

from __future__ import annotations

from cervix_engine.bundle.engine_file import EngineFingerprint
from cervix_engine.gpu import Gpu

A10, A40, L4, T4 = Gpu("NVIDIA A10", "8.6"), Gpu("NVIDIA A40", "8.6"), Gpu("NVIDIA L4", "8.9"), Gpu("Tesla T4", "7.5")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
ENGINE = "engines/nvidia-a10-tensorrt-fp16.engine"


def mark_of(data_sha256: str, graph_sha256: str) -> EngineFingerprint:
    """Of an engine with these digests, its own and its graph's, for an A10."""
    return EngineFingerprint(
        file_sha256=data_sha256,
        source="model.fp16.onnx",
        source_sha256=graph_sha256,
        runtime="tensorrt",
        runtime_version="10.9.0",
        precision="fp16",
        half_share=1.0,
        gpu=A10.name,
        cuda_version="12.8",
        compute_capabilities=(A10.compute_capability,),
        hardware_compat="none",
        min_batch=1,
        opt_batch=32,
        max_batch=64,
    )
