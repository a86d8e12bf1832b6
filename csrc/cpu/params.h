// What the operators hand to the CPU kernels, and what they may ask of them: plain structs and
// functions, no torch, so that a kernel can be read, built and tested alone.
//
// A null pointer to a state means zeros, a null pointer to a gradient "not wanted".
#pragma once

#include "model/problem.h"

namespace fusedrnn {
struct Reasons;  // model/choice.h
}

namespace fusedrnn::cpu {

struct ForwardParams {
  Problem problem;
  const void* x;        // [N, I]
  const void* h0;       // [B, P]
  const void* c0;       // [B, H]    LSTM
  const void* reset_h;  // row stride reset_rows * P: what h is after a cut
  const void* reset_c;  // likewise H
  int64_t reset_rows;   // 1: [B, *]; 0: one row for all
  const void* w_ih;     // [G*H, I]
  const void* w_hh;     // [G*H, P]
  const void* b_ih;     // [G*H]     null: no biases
  const void* b_hh;     // [G*H]
  const void* w_hr;     // [P, H]    projected
  const float* s_ih;    // [G*H]     int8: of each row of w_ih
  const float* s_hh;    // [G*H]     likewise
  const void* packed;   // in place of all weights where they are frozen: what pack() made
  void* y;              // [N, P]    row stride ldy; may not alias h0
  int64_t ldy;
  void* h_n;  // [B, P]
  void* c_n;  // [B, H]    LSTM
  void* c;    // [N, H]    LSTM: of every step, row stride ldc; null: not asked for
  int64_t ldc;
  void* reserve;    // Plan::reserve_size elements, what backward needs; null when not training
  void* workspace;  // Plan::workspace_bytes, 64-byte aligned, contents undefined
};

struct BackwardParams {
  Problem problem;
  const void* x;        // [N, I]
  const void* h0;       // [B, P]
  const void* c0;       // [B, H]    LSTM
  const void* reset_h;  // as forward's
  const void* reset_c;
  int64_t reset_rows;
  const void* w_ih;  // [G*H, I]
  const void* w_hh;  // [G*H, P]
  const void* b_ih;  // [G*H]     null: no biases; read where the gates are made again
  const void* b_hh;  // [G*H]
  const void* w_hr;  // [P, H]    projected
  const void* y;     // [N, P]    row stride ldy
  int64_t ldy;
  const void* reserve;  // as forward left it
  const void* dy;       // [N, P]    row stride lddy
  int64_t lddy;
  const void* dh_n;  // [B, P]
  const void* dc_n;  // [B, H]    LSTM
  const void* dc;    // [N, H]    LSTM, row stride lddc
  int64_t lddc;
  void* dx;  // [N, I]    added to when accumulate_dx
  bool accumulate_dx;
  void* dh0;        // [B, P]
  void* dc0;        // [B, H]    LSTM
  void* dreset_h;   // [B, P]    added to, of each row by itself
  void* dreset_c;   // [B, H]    LSTM, likewise
  void* dw_ih;      // [G*H, I]
  void* dw_hh;      // [G*H, P]
  void* db_ih;      // [G*H]
  void* db_hh;      // [G*H]
  void* dw_hr;      // [P, H]    projected
  void* workspace;  // as forward's
};

struct Plan;
struct Narrow;  // narrow.h

// Runs body(context, id, n) for id = 0..n-1, all at the same time (the bodies may wait for each
// other), with n <= wanted.
struct Team {
  void (*run)(int wanted, void (*body)(void* context, int id, int n), void* context);
  int threads;
};

using ForwardKernel = void (*)(const ForwardParams& params, const Plan& plan, const Team& team);
// Packs the weights of `params`, for calls whose weights are frozen. Biases and w_hr are of the
// dtype that is computed in.
using PackKernel = void (*)(const ForwardParams& params, const Plan& plan, void* to);
using UnpackKernel = void (*)(const Problem& problem, const Plan& plan, const void* packed,
                              bool recurrent, void* to);
using BackwardKernel = void (*)(const BackwardParams& params, const Plan& plan, const Team& team);

// What each thread owns for the whole sequence.
enum class Split : int8_t { kNone, kBatch, kHidden };
const char* name_of(Split split);

// How weights are read: from panels packed before the first step; from those, but W_hh in bfloat16,
// two vectors to the words of one; or where torch keeps them.
enum class WeightsRead : int8_t { kPacked, kPackedInPairs, kInPlace };
const char* name_of(WeightsRead weights);

// How one pass over a problem runs: everything that its kernel asks, decided once (plan.cpp).
struct Plan {
  const char* isa;
  ForwardKernel forward;  // one of these two; the other is null
  BackwardKernel backward;
  int lanes;         // elements of a vector
  int unit_vectors;  // vectors of hidden units in a panel
  int vectors;       // vectors of a panel: unit_vectors * gates
  int tile_rows;     // most rows of a register tile
  int64_t panels;
  int threads;
  Split split;
  WeightsRead weights;
  const Narrow* narrow;  // whose products are used; null: those of the dtype that is computed in
  // Steps of a chunk, whose input products (and, going back, gate gradients) are made at once. It
  // depends on the problem alone, never on the number of threads, so that sums are grouped alike
  // however many threads there are.
  int64_t stretch;
  // Steps whose gates backward makes again at once, where forward did not keep them: what the
  // problem asks for, rounded up to whole chunks. 0: they were kept.
  int64_t every;

  // Going back alone.
  bool packs_inputs_by_chunk;  // W_ih, for dx, anew for every two chunks
  int chunks;                  // whose gate gradients are kept at once
  // Columns of dW_ih and dW_hh that are summed where torch wants them, with x or h as the vectors
  // of the product. The others are summed with units of H as vectors and turned over at the end.
  int64_t input_columns_in_place, state_columns_in_place;
  int64_t gathers_from;  // elements of a row of x or h from which on its columns are gathered
  // How gates that were not kept are made again: as forward made them.
  WeightsRead again;
  const Narrow* narrow_again;

  int64_t workspace_bytes;
  int64_t reserve_size;  // elements
};

// Where `reasons` is given, the planner says there why it decided so and not otherwise.
Plan plan_forward(const Problem& problem, int threads, Reasons* reasons = nullptr);
Plan plan_backward(const Problem& problem, int threads, Reasons* reasons = nullptr);
// The weights of a direction packed once, for any number of steps and rows: the bytes that takes
// (64-byte aligned), and doing it. `params` has the problem and the weights.
int64_t packed_bytes(const Problem& problem);
void pack(const ForwardParams& params, void* to);
// W_ih or W_hh as they were before: [G*H, *], in the dtype that they are stored in.
void unpack(const Problem& problem, const void* packed, bool recurrent, void* to);
// Rows of the reserve, and elements for each. Where states are kept every so many steps, rows are
// as many as can be at the most: N / every.
int64_t kept_rows(const Problem& problem);
int64_t reserve_width(const Problem& problem);
// Whether two directions may run at once: both then have a workspace, and dx of the reverse one is
// made apart and added.
bool pairs_directions(const Problem& problem);
// Threads that each of so many directions gets: all of them, or half where two run at once.
int threads_of_direction(const Problem& problem, int directions, int threads,
                         Reasons* reasons = nullptr);

// Names of the instruction set variants this machine can run, ending with null, slowest first.
const char* const* isa_names();
// The variant in use: the fastest, or FUSEDRNN_CPU_ISA. Throws std::runtime_error on a bad name.
const char* isa_name();
// GFLOP/s of a loop of independent fp32 multiply-adds that touches registers only.
double fma_peak(const Team& team, double seconds);
// The kernels' own tanh or sigmoid over n elements, to hold its error to account.
void eval_activation(bool tanh_not_sigmoid, const float* x, float* y, int64_t n);

}  // namespace fusedrnn::cpu
