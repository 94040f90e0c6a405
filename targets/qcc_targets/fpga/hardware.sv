// Parts that every streaming network is made of. A word moves where valid and ready meet;
// no valid depends on its own ready within a cycle.

// A line buffer: keeps the words that the windows of an output still need, and reads one of them a step.
// Pointers count the endless stream of frames; they are compared by their differences.
module qcc_window #(
    parameter integer WIDTH = 8, ADDRESS = 4, POINTER = 8, FRAME = 1, PIXEL = 1, EARLY = 0,
    parameter integer ROW_FIRST = 0, ROW_STEP = 1, ROW_SPAN = 0, ROW_LAST = 0, ROW_COUNT = 1,
    parameter integer COL_FIRST = 0, COL_STEP = 1, COL_SPAN = 0, COL_LAST = 0, COL_COUNT = 1
) (
    input wire clk, input wire rst,
    input wire [WIDTH-1:0] x_data, input wire x_valid, output wire x_ready,
    output wire ready,               // the current window is in the buffer
    input wire done,                 // go on to the next window
    input wire en, input wire [ADDRESS-1:0] address, output reg [WIDTH-1:0] data
);
    localparam integer ROW_BITS = $clog2(ROW_COUNT + 1), COL_BITS = $clog2(COL_COUNT + 1);
    // Room for windows that lie in the padding before the frame and behind it.
    localparam integer SPOT = $clog2(2 * (FRAME + (ROW_FIRST < 0 ? -ROW_FIRST : ROW_FIRST) + ROW_STEP * ROW_COUNT
        + (COL_FIRST < 0 ? -COL_FIRST : COL_FIRST) + COL_STEP * COL_COUNT + ROW_SPAN + COL_SPAN + PIXEL) + 4) + 1;

    (* ram_style = "auto" *) reg [WIDTH-1:0] memory [0:(1 << ADDRESS) - 1];
    reg signed [POINTER-1:0] written, base;
    wire signed [POINTER-1:0] held = written - base;
    assign x_ready = held < $signed(POINTER'(1 << ADDRESS));
    always @(posedge clk) if (x_valid && x_ready) memory[written[ADDRESS-1:0]] <= x_data;
    always @(posedge clk) if (en) data <= memory[address];
    always @(posedge clk) if (rst) written <= 0; else if (x_valid && x_ready) written <= written + 1'b1;

    // Windows whose last word is there are granted ahead of their use.
    reg [ROW_BITS-1:0] next_row;
    reg [COL_BITS-1:0] next_col;
    reg signed [SPOT-1:0] next_row_at, next_col_at;
    reg signed [POINTER-1:0] next_frame;
    reg [3:0] granted;
    wire signed [SPOT-1:0] end_row_far = next_row_at + SPOT'(ROW_SPAN), end_col_far = next_col_at + SPOT'(COL_SPAN);
    wire signed [SPOT-1:0] end_row = end_row_far < 0 ? 0 : end_row_far > ROW_LAST ? SPOT'(ROW_LAST) : end_row_far;
    wire signed [SPOT-1:0] end_col = end_col_far < 0 ? 0 : end_col_far > COL_LAST ? SPOT'(COL_LAST) : end_col_far;
    wire signed [POINTER-1:0] behind = written - next_frame - POINTER'(end_row) - POINTER'(end_col);
    wire grant = behind >= $signed(POINTER'(PIXEL)) && granted != 4'd15;
    assign ready = granted != 0;
    always @(posedge clk)
        if (rst) begin
            next_row <= 0; next_col <= 0; next_row_at <= ROW_FIRST; next_col_at <= COL_FIRST; next_frame <= 0;
            granted <= 0;
        end else begin
            granted <= granted + {3'b0, grant} - {3'b0, done};
            if (grant) begin
                next_col <= next_col == COL_COUNT - 1 ? 0 : next_col + 1'b1;
                next_col_at <= next_col == COL_COUNT - 1 ? SPOT'(COL_FIRST) : next_col_at + SPOT'(COL_STEP);
                if (next_col == COL_COUNT - 1) begin
                    next_row <= next_row == ROW_COUNT - 1 ? 0 : next_row + 1'b1;
                    next_row_at <= next_row == ROW_COUNT - 1 ? SPOT'(ROW_FIRST) : next_row_at + SPOT'(ROW_STEP);
                    if (next_row == ROW_COUNT - 1) next_frame <= next_frame + POINTER'(FRAME);
                end
            end
        end

    // What lies before the current window is given up.
    reg [ROW_BITS-1:0] row;
    reg [COL_BITS-1:0] col;
    reg signed [SPOT-1:0] row_at, col_at;
    reg signed [POINTER-1:0] frame;
    wire signed [SPOT-1:0] from_row = row_at < 0 ? 0 : row_at > ROW_LAST ? SPOT'(ROW_LAST) : row_at;
    wire signed [SPOT-1:0] from_col = $signed({1'b0, row}) < EARLY || col_at < 0 ? 0 : col_at > COL_LAST ? SPOT'(COL_LAST) : col_at;
    always @(posedge clk)
        if (rst) begin
            row <= 0; col <= 0; row_at <= ROW_FIRST; col_at <= COL_FIRST; frame <= 0; base <= 0;
        end else begin
            base <= frame + POINTER'(from_row) + POINTER'(from_col);
            if (done) begin
                col <= col == COL_COUNT - 1 ? 0 : col + 1'b1;
                col_at <= col == COL_COUNT - 1 ? SPOT'(COL_FIRST) : col_at + SPOT'(COL_STEP);
                if (col == COL_COUNT - 1) begin
                    row <= row == ROW_COUNT - 1 ? 0 : row + 1'b1;
                    row_at <= row == ROW_COUNT - 1 ? SPOT'(ROW_FIRST) : row_at + SPOT'(ROW_STEP);
                    if (row == ROW_COUNT - 1) frame <= frame + POINTER'(FRAME);
                end
            end
        end
endmodule

// A queue of 2**ADDRESS words. ``level`` is how many it holds.
module qcc_fifo #(parameter integer WIDTH = 8, ADDRESS = 1) (
    input wire clk, input wire rst,
    input wire [WIDTH-1:0] x_data, input wire x_valid, output wire x_ready,
    output wire [WIDTH-1:0] y_data, output wire y_valid, input wire y_ready,
    output wire [ADDRESS:0] level
);
    reg [WIDTH-1:0] memory [0:(1 << ADDRESS) - 1];
    reg [ADDRESS:0] written, taken;
    // The word at the front waits in a register, so that the memory can be a block with a registered output.
    reg [WIDTH-1:0] front;
    reg full;
    wire empty = written == taken;
    wire fetch = !empty && (!full || y_ready);
    assign level = written - taken;
    assign x_ready = !level[ADDRESS];
    assign y_valid = full;
    assign y_data = front;
    always @(posedge clk) if (x_valid && x_ready) memory[written[ADDRESS-1:0]] <= x_data;
    always @(posedge clk) if (fetch) front <= memory[taken[ADDRESS-1:0]];
    always @(posedge clk)
        if (rst) begin
            written <= 0; taken <= 0; full <= 1'b0;
        end else begin
            if (x_valid && x_ready) written <= written + 1'b1;
            if (fetch) taken <= taken + 1'b1;
            if (fetch) full <= 1'b1; else if (y_ready) full <= 1'b0;
        end
`ifdef QCC_SIMULATION
    reg [ADDRESS:0] peak;
    always @(posedge clk) if (rst) peak <= 0; else if (level > peak) peak <= level;
    final $display("queue %m held %0d of %0d", peak, 1 << ADDRESS);
`endif
endmodule

// Words of IN elements become words of OUT elements; one of the two divides the other.
module qcc_gear #(parameter integer BITS = 8, IN = 1, OUT = 1) (
    input wire clk, input wire rst,
    input wire [BITS*IN-1:0] x_data, input wire x_valid, output wire x_ready,
    output wire [BITS*OUT-1:0] y_data, output wire y_valid, input wire y_ready
);
    localparam integer RATIO = IN > OUT ? IN / OUT : OUT / IN;
    localparam integer COUNT = $clog2(RATIO + 1);
    generate
        if (IN > OUT) begin : narrow
            reg [BITS*IN-1:0] word;
            reg [COUNT-1:0] left;
            wire last = left == 1;
            assign y_data = word[BITS*OUT-1:0];
            assign y_valid = left != 0;
            assign x_ready = left == 0 || (last && y_ready);
            always @(posedge clk)
                if (x_valid && x_ready) word <= x_data;
                else if (y_valid && y_ready) word <= word >> (BITS * OUT);
            always @(posedge clk)
                if (rst) left <= 0;
                else if (x_valid && x_ready) left <= COUNT'(RATIO);
                else if (y_valid && y_ready) left <= left - 1'b1;
        end else begin : widen
            reg [BITS*OUT-1:0] word;
            reg [COUNT-1:0] filled;
            wire full = filled == COUNT'(RATIO);
            assign y_data = word;
            assign y_valid = full;
            assign x_ready = !full || y_ready;
            always @(posedge clk) if (x_valid && x_ready) word <= (BITS*OUT)'({x_data, word} >> (BITS * IN));
            always @(posedge clk)
                if (rst) filled <= 0;
                else if (x_valid && x_ready) filled <= full ? COUNT'(1) : filled + 1'b1;
                else if (full && y_ready) filled <= 0;
        end
    endgenerate
endmodule

// Copies each word to COUNT readers, all of which must have room.
module qcc_fork #(parameter integer WIDTH = 8, COUNT = 2) (
    input wire [WIDTH-1:0] x_data, input wire x_valid, output wire x_ready,
    output wire [WIDTH-1:0] y_data, output wire [COUNT-1:0] y_valid, input wire [COUNT-1:0] y_ready
);
    // Readers are queues, whose ready does not depend on valid.
    assign x_ready = &y_ready;
    assign y_data = x_data;
    assign y_valid = {COUNT{x_valid && x_ready}};
endmodule

// An AXI-Stream port's bookkeeping: counts words within a frame, and knows the last one.
module qcc_frame #(parameter integer WORDS = 1) (
    input wire clk, input wire rst, input wire moved, output wire last
);
    localparam integer BITS = $clog2(WORDS + 1);
    reg [BITS-1:0] at;
    assign last = at == BITS'(WORDS - 1);
    always @(posedge clk) if (rst) at <= 0; else if (moved) at <= last ? 0 : at + 1'b1;
endmodule

// Control and counters over AXI-Lite, 32 bits wide; registers by byte address:
//   0x00 identity, "QCC1"       0x04 control: bit 0 holds the network in reset, bit 1 clears the counters
//   0x08 status: bit 0 a frame is under way, bit 1 a frame came with tlast in the wrong place
//   0x0c frames begun           0x10 frames done
//   0x14, 0x18 cycles from the first word taken to the last frame done (low, high)
//   0x1c cycles between the last two frames done
//   0x20 cycles in which an output word waited    0x24 cycles in which the network waited for input
module qcc_registers (
    input wire clk, input wire resetn,
    input wire [5:0] awaddr, input wire awvalid, output wire awready,
    input wire [31:0] wdata, input wire wvalid, output wire wready,
    output wire [1:0] bresp, output reg bvalid, input wire bready,
    input wire [5:0] araddr, input wire arvalid, output wire arready,
    output reg [31:0] rdata, output wire [1:0] rresp, output reg rvalid, input wire rready,
    output wire halt,
    input wire begun, input wire begin_word, input wire done, input wire misplaced, input wire waiting, input wire starved
);
    reg halted, wrong, running;
    reg [31:0] frames_begun, frames_done, interval, since, stalled, hungry;
    reg [63:0] cycles, clock_now;
    assign halt = halted;
    assign bresp = 2'b00;
    assign rresp = 2'b00;
    wire write = awvalid && wvalid && (!bvalid || bready);
    assign awready = write;
    assign wready = write;
    wire read = arvalid && (!rvalid || rready);
    assign arready = read;
    wire clear = write && awaddr[5:2] == 4'h1 && wdata[1];
    always @(posedge clk)
        if (!resetn) begin
            bvalid <= 1'b0; rvalid <= 1'b0; halted <= 1'b0;
        end else begin
            if (write) bvalid <= 1'b1; else if (bready) bvalid <= 1'b0;
            if (write && awaddr[5:2] == 4'h1) halted <= wdata[0];
            if (read) rvalid <= 1'b1; else if (rready) rvalid <= 1'b0;
        end
    always @(posedge clk)
        if (read)
            case (araddr[5:2])
                4'h0: rdata <= 32'h31434351;
                4'h1: rdata <= {31'b0, halted};
                4'h2: rdata <= {30'b0, wrong, frames_begun != frames_done};
                4'h3: rdata <= frames_begun;
                4'h4: rdata <= frames_done;
                4'h5: rdata <= cycles[31:0];
                4'h6: rdata <= cycles[63:32];
                4'h7: rdata <= interval;
                4'h8: rdata <= stalled;
                4'h9: rdata <= hungry;
                default: rdata <= 32'b0;
            endcase
    always @(posedge clk)
        if (!resetn || halted || clear) begin
            wrong <= 1'b0; running <= 1'b0; frames_begun <= 0; frames_done <= 0; interval <= 0; since <= 0;
            stalled <= 0; hungry <= 0; cycles <= 0; clock_now <= 0;
        end else begin
            if (begin_word) running <= 1'b1;
            if (running || begin_word) clock_now <= clock_now + 1'b1;
            if (begun) frames_begun <= frames_begun + 1'b1;
            since <= done ? 1 : since + 1'b1;
            if (done) begin
                frames_done <= frames_done + 1'b1;
                cycles <= clock_now + 1'b1;
                interval <= since;
            end
            if (misplaced) wrong <= 1'b1;
            if (waiting) stalled <= stalled + 1'b1;
            if (starved) hungry <= hungry + 1'b1;
        end
endmodule
