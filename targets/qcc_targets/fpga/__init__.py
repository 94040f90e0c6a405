"""The target ``fpga``: an integer network as streaming hardware, from TensorIR functions scheduled by folding."""
