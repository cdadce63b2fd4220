"""Compiles the layers' kernels for an H100, which needs no GPU; run by `test_cuda_compile` in a process of its own,
since one that has Triton's interpreter on cannot compile.

What the interpreter lets pass and the compiler does not is found here, and so is an access that has become narrow.
"""

from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from albireo.gpu_worker.cuda.gemv import choose_tiles
from albireo.gpu_worker.cuda.kernels.elementwise import rms_norm_kernel, silu_and_mul_kernel
from albireo.gpu_worker.cuda.kernels.embedding import embedding_kernel
from albireo.gpu_worker.cuda.kernels.gemv import gemv_kernel
from albireo.gpu_worker.cuda.kernels.rotate_and_store import rotate_and_store_kernel
from albireo.gpu_worker.cuda.kernels.skinny import skinny_kernel
from albireo.gpu_worker.cuda.skinny import choose_skinny_tiles

H100 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024


@dataclass(frozen=True)
class Variant:
    kernel: Any
    types: dict[str, str]
    """Of the arguments that are no constants; pointers and strides are taken to be multiples of 16."""
    constants: dict[str, Any]
    num_warps: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    wide_load: str | None = "ld.global"
    """What 16 bytes a thread are read with."""

    def compile(self) -> Any:
        names = self.kernel.arg_names
        signature = {name: self.types.get(name, "constexpr") for name in names}
        aligned = [["tt.divisibility", 16]]
        attributes = {
            (i,): aligned for i, name in enumerate(names) if signature[name][0] == "*" or name.endswith("_stride")
        }
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=H100, options={"num_warps": self.num_warps, **self.options})


def pointers(names: str, element: str = "*bf16") -> dict[str, str]:
    return dict.fromkeys(names.split(), element)


def gemvs() -> list[Variant]:
    types = {**pointers("x weight bias residual out norm_weight"), "eps": "fp32", "N": "i32"}
    found = []
    for outputs, inputs, is_gated in ((6144, 4096, False), (28672, 4096, True), (4096, 14336, False)):
        tiles = choose_tiles(outputs, inputs, 2, is_gated)
        for normed, stages, is_dependent in ((False, 1, False), (True, 1, True), (True, 3, False)):
            constants = {
                "K": inputs, "BLOCK_N": tiles.block_n, "BLOCK_K": tiles.block_k, "STAGES": stages, "VECTOR": 8,
                "NORM_BLOCK": triton.next_power_of_2(inputs), "NORMED": normed, "GATED": is_gated,
                "HAS_BIAS": normed, "HAS_RESIDUAL": not normed, "IS_DEPENDENT": is_dependent,
            }  # fmt: skip
            load = "ld.global" if stages == 1 else "cp.async"
            options = {"launch_pdl": is_dependent}
            found.append(Variant(gemv_kernel, types, constants, tiles.num_warps, options, load))
    return found


def skinnies() -> list[Variant]:
    types = {**pointers("x weight bias residual out"), "num_rows": "i32", "x_stride": "i32", "N": "i32"}
    found = []
    for outputs, rows in ((6144, 16), (1024, 16), (4096, 32)):
        tiles = choose_skinny_tiles(outputs, 4096)
        constants = {
            "K": 4096, "BLOCK_M": rows, "BLOCK_N": tiles.block_n, "BLOCK_K": tiles.block_k, "STAGES": tiles.stages,
            "HAS_BIAS": True, "HAS_RESIDUAL": True, "IN_FP32": False,
        }  # fmt: skip
        found.append(Variant(skinny_kernel, types, constants, tiles.num_warps, {}, "cp.async"))
    return found


def rotations() -> list[Variant]:
    found = []
    for head_dim, tile_heads, half, has_norm in ((128, 16, 64, False), (80, 16, 64, True), (256, 8, 128, True)):
        types = {
            **pointers("qkv query k_cache v_cache qk_norm"), "table": "*fp32", "positions": "*i64",
            "slot_mapping": "*i64", "qkv_stride": "i32", "eps": "fp32",
        }  # fmt: skip
        constants = {
            "NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "HAS_NORM": has_norm,
            "TILE_HEADS": tile_heads, "HALF": half,
        }  # fmt: skip
        found.append(Variant(rotate_and_store_kernel, types, constants))
    return found


def others() -> list[Variant]:
    norm = {**pointers("x weight out"), "x_stride": "i32", "eps": "fp32"}
    silu = {**pointers("gate_up out"), "x_stride": "i32"}
    embedding = {**pointers("table out"), "tokens": "*i32", "first_token": "i32", "num_rows": "i32"}
    return [
        Variant(rms_norm_kernel, norm, {"WIDTH": 4096, "BLOCK": 4096}, num_warps=8),
        Variant(rms_norm_kernel, norm, {"WIDTH": 12288, "BLOCK": 16384}, num_warps=32),
        Variant(rms_norm_kernel, norm, {"WIDTH": 100, "BLOCK": 128}, num_warps=1, wide_load=None),
        Variant(silu_and_mul_kernel, silu, {"WIDTH": 14336, "BLOCK": 1024}),
        Variant(embedding_kernel, embedding, {"WIDTH": 4096, "BLOCK": 1024}),
    ]


def main() -> None:
    for variant in [*gemvs(), *skinnies(), *rotations(), *others()]:
        compiled = variant.compile()
        name, ptx = variant.kernel.__name__, compiled.asm["ptx"]
        assert compiled.metadata.shared <= SHARED_BYTES, f"{name} {variant.constants}: {compiled.metadata.shared} bytes"
        assert ".local" not in ptx, f"{name} {variant.constants} keeps something in local memory"
        if variant.wide_load is not None:
            wide = [
                line for line in ptx.splitlines() if variant.wide_load in line and ("v4.b32" in line or "0x10" in line)
            ]
            assert wide, f"{name} {variant.constants}: no {variant.wide_load} of 16 bytes"
        print(f"{name}: {compiled.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    main()
