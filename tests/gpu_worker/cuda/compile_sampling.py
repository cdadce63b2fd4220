"""Compiles the sampling kernels for an H100, which needs no GPU; run by `test_cuda_compile` in a process of
its own, since one that has Triton's interpreter on cannot compile."""

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from albireo.gpu_worker.cuda import sampler
from albireo.gpu_worker.cuda.row_masks import SharedMasks
from albireo.shm.layout import ADMISSION

H100 = GPUTarget("cuda", 90, 32)
VOCAB = 128_256
MASK_WORDS = 4016
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int16: "*i16", torch.uint8: "*u8",
    torch.float64: "*fp64", torch.int64: "*i64",
}  # fmt: skip


class Compiled:
    """Stands in for a kernel: compiles it for the arguments it would be launched with."""

    def __init__(self, kernel: Any, name: str) -> None:
        self.kernel, self.name = kernel, name

    def __getitem__(self, grid: Any) -> Any:
        return self._compile

    def _compile(self, *args: Any, num_warps: int = 4, enable_fp_fusion: bool = True, **constants: Any) -> None:
        names = self.kernel.arg_names
        signature = dict.fromkeys(names, "constexpr")
        attributes = {}
        for i, (name, value) in enumerate(zip(names, args, strict=False)):
            signature[name] = _TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or name == "stride":
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, {(names.index(n),): v for n, v in constants.items()}, attributes)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        binary = triton.compile(source, target=H100, options=options)
        ptx = binary.asm["ptx"]
        assert ".local" not in ptx, f"{self.name} keeps something in local memory"
        if not enable_fp_fusion:
            fused = re.findall(r"fma\.rn\.f64", ptx)
            print(f"{self.name}: {binary.metadata.shared} bytes shared, {len(fused)} float64 fma of the logarithms")


def main() -> None:
    for name in ("adjust_rows", "survey_rows", "gather_candidates", "choose_tokens", "observe_tokens",
                 "survey_scored", "gather_scored", "write_scores"):  # fmt: skip
        setattr(sampler, name, Compiled(getattr(sampler, name), name))
    cpu = torch.device("cpu")
    rows, slots = 4, torch.zeros(4, dtype=torch.int32)
    alive = torch.zeros(4, dtype=torch.int32)
    admissions = torch.zeros(rows, ADMISSION.itemsize // 4, dtype=torch.int32)
    shared = SharedMasks(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, MASK_WORDS, dtype=torch.int32))
    made = sampler.CudaSampler(VOCAB, admissions, rows, 1, cpu, shared)
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.zeros(rows, VOCAB, dtype=dtype)
        made.draw(logits, slots, alive, slots, slots)
        made.score(logits, slots, slots, slots, torch.zeros(rows, 48, dtype=torch.int32))
    made.observe(slots, slots)


if __name__ == "__main__":
    main()
