// What the operators hand to the CUDA kernels, what a plan is and what it depends on: plain structs
// and functions, no torch and no CUDA headers.
//
// On a GPU the products with all inputs and the weight gradients are the caller's; kernels make the
// recurrence between them. A row of x has S slots of H elements in `slots`, slot by slot in torch's
// gate order: i, f, g, o; r, z, n, h_n; one for an Elman cell. Before the recurrence the first G
// hold x W_ih' + b_ih; after it, when training, all hold what backward needs. Pointers are device
// pointers, `offsets` included (Problem::offsets stays on the host and is not read by kernels).
#pragma once

#include "model/problem.h"

namespace fusedrnn::cuda {

constexpr int64_t slots_of(Cell cell, bool training) {
  return training ? spec(cell).slots : spec(cell).gates;
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

// What a plan must know of a GPU. Plain data: a plan for any GPU can be made on any machine.
struct Device {
  int sm;  // 90: compute capability 9.0
  int multiprocessors;
  int64_t shared_bytes;  // most that one block may have
  double clock_ghz;
  int clusters[5];  // how many clusters of 1, 2, 4, 8, 16 blocks run at once; 0: not to be had
};

// kTorch: torch.nn's own path, cuDNN, taken by the caller and not by any kernel here.
enum class Kernel { kBlock, kCluster, kStepwise, kTorch };
enum class Pass { kForward, kBackward };

struct Plan {
  Kernel kernel;
  int tile;     // index of the persistent kernel; -1 for others
  int hidden;   // H padded
  int cluster;  // blocks that share a batch row; 1 for kBlock
  int rows;     // batch rows of a block or cluster
  int threads;
  int registers;         // most that a thread may use
  int64_t shared_bytes;  // a block
  int64_t blocks;        // of one direction
  int64_t chunk;         // steps a launch, products of the next ones running beside it; 0: all T
  double step_us;        // one time step of all rows and directions, products included
  double recurrence_us;  // of it, the recurrence alone, as estimated
  bool yields;           // more waves than are trusted unmeasured: rather cuDNN, if it may
  bool measured;         // step_us was measured on the device, not estimated
};

// What the choice depends on beside a layer's problem.
struct Setting {
  int directions;
  int64_t L;  // layers of the stack, which torch.nn's path may run side by side
  bool tf32;  // the products may use TF32: torch's switch for RNNs
};

// Sizes are measured by class, never one by one: H up to the next of these, or of the powers of two
// above them; B up to the next power of two. A class is named by its largest member.
constexpr int64_t power_above(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}
constexpr int64_t class_of_H(int64_t H) {
  constexpr int kSizes[] = {32, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024};
  for (const int size : kSizes) {
    if (H <= size) return size;
  }
  return power_above(H);
}
constexpr int64_t class_of_B(int64_t B) { return power_above(B); }
constexpr int64_t class_of_L(int64_t L) { return L > 1 ? 2 : 1; }

// One time step, products included, of a class of problems, as the members below name it.
// `tile` is -1 but for persistent kernels.
struct Measured {
  Cell cell;  // kRnnTanh stands for both nonlinearities
  Pass pass;
  bool training, tf32;
  int H, B, D, L;
  Kernel kernel;
  int tile;
  double step_us;
};

// What running on a device has shown of it.
struct Experience {
  uint64_t excluded[2];      // by pass: bit i for tile i, which computed wrongly or did not start
  const Measured* measured;  // by `fusedrnn tune`
  int64_t count;
};

// What is left to our kernels although cuDNN may be faster: sizes that it refuses, and training in
// float64, which is mostly done to differentiate twice, as cuDNN cannot.
constexpr bool torch_takes(const Problem& p) {
  constexpr int64_t kMost = 65535;
  return p.T <= kMost && p.B <= kMost && !(p.dtypes.computed == DType::kFloat64 && p.training);
}

// The cheapest plan of those `allowed` (bits 1 << kernel); each candidate not taken is named to
// `rejected`, if given, with the reason. kStepwise is always possible where it is allowed.
using Rejected = void (*)(void* context, const char* candidate, const char* reason);
constexpr unsigned kAnyKernel = 0xf;
// Above these bits, 1 + the only tile that persistent kernels may use; 0: any.
constexpr int kTileShift = 8;
constexpr unsigned kNoneYields = 0x10;  // this bit leaves out plans that yield to cuDNN
Plan plan(Pass pass, const Problem& problem, const Setting& setting, const Device& device,
          const Experience& experience, unsigned allowed, Rejected rejected = nullptr,
          void* context = nullptr);
int tile_count();  // persistent kernels there are

// These return 0 or a cudaError_t, which error_string() names. `stream` is a cudaStream_t.
Device device(int index, int* error);
int forward(const Forward& params, const Plan& plan, void* stream);
int backward(const Backward& params, const Plan& plan, void* stream);
int step_forward(const StepForward& params, void* stream);
int step_backward(const StepBackward& params, void* stream);
int previous_h(const PreviousH& params, void* stream);
const char* error_string(int error);

}  // namespace fusedrnn::cuda
