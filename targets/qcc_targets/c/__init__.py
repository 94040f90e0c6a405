"""The target ``c``: an integer network as standalone C99, from the same TensorIR as the CPU library."""
