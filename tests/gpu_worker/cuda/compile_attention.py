"""Compiles attention for an H100, which needs no GPU; run by `test_cuda_compile` in a process of its own,
since one that has Triton's interpreter on cannot compile.

What the interpreter lets pass and the compiler does not is found here, and so are tiles that are too large: for the
shared memory of a smaller card, or for the registers.
"""

import re
import subprocess
import tempfile
from dataclasses import asdict
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from albireo.gpu_worker.cuda.attention import LEAST_ROWS, choose_chunk_tiles, choose_decode_tiles
from albireo.gpu_worker.cuda.kernels.chunk_attention import chunk_kernel
from albireo.gpu_worker.cuda.kernels.decode_attention import combine_kernel, decode_kernel
from albireo.gpu_worker.cuda.kernels.write_kv import write_kv_kernel

H100 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 99 * 1024
"""What the smallest cards of the last generations have for a program."""
INT_POINTERS = "block_table slots seq_lens query_start row_shares"
NUMBERS = (
    "num_rows num_shares least_tiles window table_stride first_seq q_stride q_head_stride out_stride out_head_stride "
    "k_stride k_head_stride v_stride v_head_stride"
)


def compile_kernel(kernel: Any, dtype: torch.dtype, constants: dict[str, Any], warps: int, stages: int = 1) -> Any:
    """With pointers to elements and strides that are multiples of 16, which those of models are."""
    element = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = {
        **dict.fromkeys(["q", "k", "v", "k_cache", "v_cache", "out"], element),
        **dict.fromkeys(INT_POINTERS.split(), "*i32"),
        **dict.fromkeys(NUMBERS.split(), "i32"),
        **{"slot_mapping": "*i64", "partials": "*fp32", "partial_logs": "*fp32", "scale": "fp32"},
    }
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    plain = {param.name for param in kernel.params if param.do_not_specialize}
    aligned = [i for i, name in enumerate(names) if name not in plain and ("*" in signature[name] or "stride" in name)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, {(names.index(name),): v for name, v in constants.items()}, attributes)
    return triton.compile(source, target=H100, options={"num_warps": warps, "num_stages": stages})


def stack_bytes(compiled: Any) -> int:
    """What a thread keeps in memory for want of registers."""
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found, usage
    return int(found[1])


def check(kernel: Any, compiled: Any, constants: dict[str, Any]) -> None:
    name = kernel.__name__
    assert compiled.metadata.shared <= SHARED_BYTES, f"{name} {constants}: {compiled.metadata.shared} bytes"
    assert stack_bytes(compiled) == 0, f"{name} {constants} spills registers"
    print(f"{name} {constants.get('HEAD_DIM')}: {compiled.metadata.shared} bytes of shared memory")


def attention(head_dim: int, group: int, dtype: torch.dtype, *, has_window: bool) -> None:
    decode, chunk = choose_decode_tiles(head_dim, dtype), choose_chunk_tiles(head_dim, dtype)
    block_d = triton.next_power_of_2(head_dim)
    shape = {
        "NUM_KV_HEADS": 8, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "HAS_WINDOW": has_window,
        "ALIGN": 16, "BLOCK_D": block_d, "IN_FP32": False,
    }  # fmt: skip
    block_m = max(LEAST_ROWS, triton.next_power_of_2(group))
    constants = {
        **shape, "CAN_SPLIT": True, "BLOCK_M": block_m, "BLOCK_N": decode.block_n, "ROWS": 256,
    }  # fmt: skip
    compiled = compile_kernel(decode_kernel, dtype, constants, decode.num_warps, decode.num_stages)
    wide_copies = re.findall(r"cp\.async\.cg.*0x10", compiled.asm["ptx"])
    assert wide_copies and "cp.async.ca" not in compiled.asm["ptx"], f"narrow copies, {decode}"
    check(decode_kernel, compiled, constants)
    constants = {**shape, "BLOCK_M": chunk.block_m, "BLOCK_N": chunk.block_n}
    compiled = compile_kernel(chunk_kernel, dtype, constants, chunk.num_warps, chunk.num_stages)
    assert dtype == torch.float32 or "wgmma" in compiled.asm["ptx"], f"no Hopper tensor cores with {asdict(chunk)}"
    check(chunk_kernel, compiled, constants)


def others() -> None:
    constants = {"NUM_HEADS": 32, "HEAD_DIM": 128, "BLOCK_S": 8, "BLOCK_H": 4, "BLOCK_D": 128}
    check(combine_kernel, compile_kernel(combine_kernel, torch.bfloat16, constants, 4), constants)
    constants = {"NUM_KV_HEADS": 8, "HEAD_DIM": 80, "BLOCK_SIZE": 16, "BLOCK_H": 8, "BLOCK_D": 128}
    check(write_kv_kernel, compile_kernel(write_kv_kernel, torch.bfloat16, constants, 4), constants)


def main() -> None:
    attention(128, 4, torch.bfloat16, has_window=False)
    attention(256, 7, torch.bfloat16, has_window=True)
    attention(80, 1, torch.float32, has_window=False)
    others()


if __name__ == "__main__":
    main()
