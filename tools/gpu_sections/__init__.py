"""What `tools/gpu_check.py` is made of. Each `job_*.py` is a process of its own: one that hangs or crashes is ended and
told in the table, and the others go on.

options.py          the flags, frozen, and the sizes of the workloads
report.py           rows, the table, the files under --out
budget.py           what time is left, and which sections are chosen
jobs.py             the parent's end of a job: started, listened to, ended in time
job.py              a job's end: what it says and the rows that it writes
servers.py          `albireo-run serve` with the time of each line that it says
model.py            shapes; a folder that a server starts on, with or without weights
floors.py           least time of a decode step: bytes over bandwidth
load.py             the bench client's settings
job_tests.py        pytest on the GPU's tests
job_parity.py       served tokens and logprobs against transformers' (parity_reference.py)
job_decode.py       decode steps from flight records: step time against the floor, exposed device time
job_throughput.py   many requests at once: tokens per second, joules per token
job_peer.py         the same by transformers' continuous batching
job_start.py        seconds from the command to the first token, weights on disk
job_kernels.py      the kernels' own benchmarks
"""
