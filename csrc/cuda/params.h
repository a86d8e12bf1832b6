// What the operators hand to the CUDA kernels: plain structs and functions, no torch and no CUDA
// headers.
//
// The caller multiplies all inputs by W_ih before the recurrence and makes the weight gradients
// after it; the kernels run the recurrence in between. They work in `slots`: a row has S slots of H
// elements, slot by slot, first the G gates in torch's order, then what the cell keeps apart (i, f,
// g, o; r, z, n, h_n; one for an Elman cell). Before the recurrence the first G hold
// x W_ih' + b_ih. After it, in training, all S hold what backward needs.
//
// Pointers are device pointers, `offsets` too. Problem::offsets is on the host: no kernel reads it.
// "With c" marks what only a cell with a second state has, and "keeps slots", "uses h before" what
// depends on these fields of CellSpec.
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
  const void* c0;    // [B, H]    with c
  void* y;           // [N, H]    row stride ldy
  void* c;           // [N, H]    with c, row stride ldc; null: not wanted. Training reads it
                     //           back, so it is there then
  void* h_n;         // [B, H]
  void* c_n;         // [B, H]    with c
};

// A launch runs the steps [begin, end), counted in the order in which they are taken: backward
// counts from the last step. So a sequence can be run in pieces. Rows, offsets and pointers are
// those of the whole problem, but for the states: h0 and c0 are those at `begin`, h_n and c_n those
// at `end`; backward, dh_n and dc_n are those at `begin`, dh0 and dc0 those at `end`.
struct Forward {
  Problem problem;         // its `reverse` is not read: direction 1 is the reverse one
  int directions;          // 1 or 2, in one launch
  const int64_t* offsets;  // [T+1] packed, else null
  int64_t begin, end;
  int64_t ldy, ldc;
  ForwardDirection direction[2];
};

struct BackwardDirection {
  const void* slots;  // [N, S*H] as forward left them; keeps slots
  const void* c;      // [N, H]   with c
  const void* w_hh;   // [G*H, H]
  const void* h0;     // [B, H]
  const void* c0;     // [B, H]   with c
  const void* y;      // [N, H]   row stride ldy
  const void* dy;     // [N, H]   row stride lddy; null: zeros
  const void* dc;     // [N, H]   with c, row stride lddc: of c as a result; null: zeros
  const void* dh_n;   // [B, H]   null: zeros
  const void* dc_n;   // [B, H]   null: zeros
  void* dslots;       // [N, S*H] gradients of the slots: the first G are those of x W_ih', those of
                      //          h W_hh' lie at place_of_recurrent
  void* dh0;          // [B, H]
  void* dc0;          // [B, H]   with c
};

struct Backward {
  Problem problem;
  int directions;
  const int64_t* offsets;
  int64_t begin, end;
  int64_t ldy, lddy, lddc;
  BackwardDirection direction[2];
};

// One time step of one direction, element by element: what the stepwise path does between two
// matrix products. Row r of a step is batch row r. States of the first `rows` rows are updated in
// place.
struct StepForward {
  Problem problem;
  int64_t rows;
  void* slots;       // [rows, S*H]
  const void* hw;    // [rows, G*H]  h_prev W_hh'; null: zeros
  const void* b_hh;  // [G*H]
  void* h;           // [B, H]       h_prev going in, h coming out
  void* c_state;     // [B, H]       with c, likewise
  void* y;           // [rows, H]    row stride ldy: h once more; null: not wanted
  int64_t ldy;
  void* c;  // [rows, H]    with c, row stride ldc: c once more; null: not wanted
  int64_t ldc;
};

struct StepBackward {
  Problem problem;
  int64_t rows;
  const void* slots;   // [rows, S*H]  keeps slots
  const void* c;       // [rows, H]    with c
  const void* c_prev;  // [rows_prev, H]
  const void* c0;      // [B, H]       of the rows from rows_prev on; null: zeros
  const void* h;       // [rows, H]    does not keep slots: this step's output, row stride ldh
  const void* h_prev;  // [rows_prev, H]  uses h before, row stride ldh
  const void* h0;      // [B, H]
  int64_t ldh, rows_prev;
  const void* dy;  // [rows, H]    row stride lddy; null: zeros
  int64_t lddy;
  const void* dc;  // [rows, H]    with c, row stride lddc: of c as a result; null: zeros
  int64_t lddc;
  void* dh;  // [B, H]       gradient of h going in; coming out, of h_prev but for the part that
             //              comes through W_hh
  void* dc_state;  // [B, H]       with c: gradient of c going in, of c_prev coming out
  void* dslots;    // [rows, S*H]
  void* dhw;       // [rows, G*H]  gradient of h_prev W_hh' if the cell keeps some of it apart
                   //              (GRU); if not, dslots is that
};

// For each of the N rows the h that it was computed from: y of the step before, or h0.
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
