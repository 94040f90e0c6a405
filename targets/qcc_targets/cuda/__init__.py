"""The target ``cuda``: an integer network as CUDA kernels, compiled to machine code without a GPU.

Every kernel is a TensorIR function with bound threads, from which TVM's code generator writes CUDA source.
Operations without a template of their own are the generic loop nests of the CPU target, one thread per
result (``bind``). The inner parts of the fast ones, which need registers laid out as tensor cores want them,
are device function templates in ``device/``, called from TensorIR as external functions: unrolled fragments
written through TensorIR become source that no one can read. All inline assembly is in ``device/ptx.cuh``, so
that the same source also runs on a CPU where that file is replaced by functions of the same meaning.
"""
