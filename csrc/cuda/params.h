// What the operators hand to the CUDA kernels: plain structs and functions, no torch and no CUDA
// headers.
//
// On a GPU the products with all inputs and the weight gradients are the caller's; kernels make the
// recurrence between them. A row of x has S slots of H elements in `slots`, slot by slot in torch's
// gate order: i, f, g, o; r, z, n, h_n; one for an Elman cell. Before the recurrence the first G
// hold x W_ih' + b_ih; after it, when training, all hold what backward needs. Pointers are device
// pointers, `offsets` included (Problem::offsets stays on the host and is not read by kernels).
#pragma once

#include "cuda/plan.h"

namespace fusedrnn::cuda {

constexpr int64_t slots_of(Cell cell, bool training) {
  return training ? spec(cell).slots : spec(cell).gates;
}
// Where gate `gate` of h W_hh' lies among the slots of a row: with that of x W_ih', unless the cell
// keeps it apart, as GRU's h_n behind r, z, n.
constexpr int place_of_recurrent(Cell cell, int gate) {
  const CellSpec& s = spec(cell);
  return s.input_slot[gate] == s.recurrent_slot[gate] ? gate : s.recurrent_slot[gate];
}

struct ForwardDirection {
  void* slots;       // [N, S*H]  overwritten when training
  const void* w_hh;  // [G*H, H]
  const void* b_hh;  // [G*H]     null: no biases
  const void* h0;    // [B, H]
  const void* c0;    // [B, H]    LSTM
  void* y;           // [N, H]    row stride ldy
  void* c;           // [N, H]    LSTM, training
  void* h_n;         // [B, H]
  void* c_n;         // [B, H]    LSTM
};

// `begin` and `end` are steps in the order in which they are taken: a launch runs [begin, end) of
// the problem's T, so that a sequence can be run in pieces. Rows, offsets and pointers stay the
// whole problem's; h0 and c0 (dh_n and dc_n) are the states at `begin`, h_n and c_n (dh0 and dc0)
// those at `end`. Backward counts from the last step.
struct Forward {
  Problem problem;         // its `reverse` is not read: direction 1 is the reverse one
  int directions;          // 1 or 2, in one launch
  const int64_t* offsets;  // [T+1] packed, else null
  int64_t begin, end;
  int64_t ldy;
  ForwardDirection direction[2];
};

struct BackwardDirection {
  const void* slots;  // [N, S*H] as forward left them; an Elman cell has no use for them
  const void* c;      // [N, H]   LSTM
  const void* w_hh;   // [G*H, H]
  const void* h0;     // [B, H]
  const void* c0;     // [B, H]   LSTM
  const void* y;      // [N, H]   row stride ldy
  const void* dy;     // [N, H]   row stride lddy; null: zeros
  const void* dh_n;   // [B, H]   null: zeros
  const void* dc_n;   // [B, H]   null: zeros
  void* dslots;       // [N, S*H] gradients of the slots: the first G reach x, all but GRU's n reach
                      //          h (its r, z, h_n)
  void* dh0;          // [B, H]
  void* dc0;          // [B, H]   LSTM
};

struct Backward {
  Problem problem;
  int directions;
  const int64_t* offsets;
  int64_t begin, end;
  int64_t ldy, lddy;
  BackwardDirection direction[2];
};

// One time step of one direction, element by element: the part of the stepwise path that is not a
// matrix product. Row r of a step is batch row r; states are updated in place for `rows` rows.
struct StepForward {
  Problem problem;
  int64_t rows;
  void* slots;       // [rows, S*H]
  const void* hw;    // [rows, G*H]  h_prev W_hh'; null: zeros
  const void* b_hh;  // [G*H]
  void* h;           // [B, H]       h_prev going in, h coming out
  void* c_state;     // [B, H]       LSTM, likewise
  void* y;           // [rows, H]    row stride ldy: h once more; null: not wanted
  int64_t ldy;
  void* c;  // [rows, H]    LSTM, training: c once more
};

struct StepBackward {
  Problem problem;
  int64_t rows;
  const void* slots;   // [rows, S*H]
  const void* c;       // [rows, H]    LSTM
  const void* c_prev;  // [rows_prev, H]
  const void* c0;      // [B, H]       of the rows from rows_prev on; null: zeros
  const void* h;       // [rows, H]    Elman: this step's output, row stride ldh
  const void* h_prev;  // [rows_prev, H]  GRU, row stride ldh
  const void* h0;      // [B, H]
  int64_t ldh, rows_prev;
  const void* dy;  // [rows, H]    row stride lddy; null: zeros
  int64_t lddy;
  void* dh;  // [B, H]       gradient of h going in, of h_prev coming out, less what W_hh brings
  void* dc_state;  // [B, H]       LSTM, likewise and whole
  void* dslots;    // [rows, S*H]
  void* dhw;       // [rows, G*H]  GRU: gradient of h_prev W_hh'; for others the same as dslots
};

// h that each of the N rows was computed from: y of the step before, or h0.
struct PreviousH {
  Problem problem;
  const int64_t* offsets;
  const void* h0;  // [B, P]  null: zeros
  const void* y;   // [N, P]  row stride ldy
  int64_t ldy;
  void* h;  // [N, P]
};

// These return 0 or a cudaError_t, which error_string() names. `stream` is a cudaStream_t.
Device device(int index, int* error);
int forward(const Forward& params, const Plan& plan, void* stream);
int backward(const Backward& params, const Plan& plan, void* stream);
int step_forward(const StepForward& params, void* stream);
int step_backward(const StepBackward& params, void* stream);
int previous_h(const PreviousH& params, void* stream);
const char* error_string(int error);

}  // namespace fusedrnn::cuda
