"""Running CUDA kernels on the host: the generated source, unchanged, compiled by g++ against a model of SIMT.

``device.h`` stands for what nvcc and ``ptx.cuh`` give; the runtime beside it makes threads of a block fibers,
which run in an order drawn from a seed, and gives barriers, operations of whole warps and asynchronous copies
their meaning. With the race check, missing barriers and accesses beyond a kernel's memory are errors.
"""
