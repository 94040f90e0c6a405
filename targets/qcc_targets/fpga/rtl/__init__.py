"""SystemVerilog of the streaming stages, written from their scheduled TensorIR."""
