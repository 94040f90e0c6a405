"""The target ``fpga``: an integer network as streaming hardware, one stage per layer, all running at once."""
