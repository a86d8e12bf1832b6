// The contract between the operators and the kernels of every device: plain structs and
// functions, no torch and no CUDA headers, so that a kernel can be read, built and tested alone.
//
// T time steps, B batch rows, I input size, H hidden size, P size of h (= H without projection),
// N rows of all steps together (T*B, or fewer when packed). Matrices are row-major; weights and
// their gate order (i, f, g, o; r, z, n) are torch's. A null pointer to a state means zeros, a null
// pointer to a gradient means "not wanted".
#pragma once

#include <cstdint>

namespace fusedrnn {

enum class Cell { kRnnTanh, kRnnRelu, kLstm, kGru };
enum class DType { kFloat32, kFloat64 };

constexpr int64_t gates_of(Cell cell) {
  return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1;
}
constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 8; }

// One direction of one layer. `offsets` has T+1 entries when the batch is packed: step t owns the
// rows [offsets[t], offsets[t+1]) of x and y, as many as there are sequences longer than t, and
// batch row b is row b of every step it takes part in. Null: every step has B rows.
struct Problem {
  Cell cell;
  DType dtype;
  int64_t T, B, I, H, P;
  bool projected;
  bool training;
  bool reverse;
  bool bfloat16_weights;  // and biases; dtype is float32 then, and nothing is trained. CPU only
  const int64_t* offsets;

  // Inlined always: each variant of the CPU kernels would leave a copy for its own machine, and the
  // linker keep any one of them.
  [[gnu::always_inline]] int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * B; }
  [[gnu::always_inline]] int64_t rows(int64_t t) const { return offset(t + 1) - offset(t); }
  [[gnu::always_inline]] int64_t total_rows() const { return offset(T); }
};

struct ForwardParams {
  Problem problem;
  const void* x;     // [N, I]
  const void* h0;    // [B, P]
  const void* c0;    // [B, H]    LSTM
  const void* w_ih;  // [G*H, I]
  const void* w_hh;  // [G*H, P]
  const void* b_ih;  // [G*H]     null: no biases
  const void* b_hh;  // [G*H]
  const void* w_hr;  // [P, H]    projected
  void* y;           // [N, P]    row stride ldy; may not alias h0
  int64_t ldy;
  void* h_n;        // [B, P]
  void* c_n;        // [B, H]    LSTM
  void* reserve;    // reserve_size() elements, what backward needs; null when not training
  void* workspace;  // Plan::workspace_bytes, 64-byte aligned, contents undefined
};

struct BackwardParams {
  Problem problem;
  const void* x;     // [N, I]
  const void* h0;    // [B, P]
  const void* c0;    // [B, H]    LSTM
  const void* w_ih;  // [G*H, I]
  const void* w_hh;  // [G*H, P]
  const void* w_hr;  // [P, H]    projected
  const void* y;     // [N, P]    row stride ldy
  int64_t ldy;
  const void* reserve;  // as forward left it
  const void* dy;       // [N, P]    row stride lddy
  int64_t lddy;
  const void* dh_n;  // [B, P]
  const void* dc_n;  // [B, H]    LSTM
  void* dx;          // [N, I]    added to when accumulate_dx
  bool accumulate_dx;
  void* dh0;        // [B, P]
  void* dc0;        // [B, H]    LSTM
  void* dw_ih;      // [G*H, I]
  void* dw_hh;      // [G*H, P]
  void* db_ih;      // [G*H]
  void* db_hh;      // [G*H]
  void* dw_hr;      // [P, H]    projected
  void* workspace;  // as forward's
};

// How a problem is run. `stretch` is the number of time steps whose input projection (and, going
// back, gate gradients) is made at once; it depends on the problem alone, never on the number of
// threads, so that sums are grouped alike however many threads there are.
enum class Split { kNone, kBatch, kHidden };

struct Plan {
  const char* isa;
  int threads;
  Split split;
  int lanes;         // elements in a vector
  int unit_vectors;  // vectors of hidden units in a panel
  int vectors;       // vectors of a panel: unit_vectors * gates
  int tile_rows;     // most rows of a register tile
  bool direct;       // the weights are read where they lie, without packing them first
  bool pairs;        // W_hh is packed in bfloat16, two vectors to the words of one
  int64_t panels;
  int64_t stretch;
  int64_t workspace_bytes;
  int64_t reserve_size;  // elements
};

// Runs body(context, id, n) for id = 0..n-1, all at the same time (the bodies may wait for each
// other), with n <= wanted.
struct Team {
  void (*run)(int wanted, void (*body)(void* context, int id, int n), void* context);
  int threads;
};

namespace cpu {

Plan plan_forward(const Problem& problem, int threads);
Plan plan_backward(const Problem& problem, int threads);
int64_t reserve_width(const Problem& problem);  // elements for each of the N rows
// Whether two directions may run at once: both then have a workspace, and dx of the reverse one is
// made apart and added.
bool pairs_directions(const Problem& problem);
// Threads that each of so many directions gets: all of them, or half where two run at once.
int threads_of_direction(const Problem& problem, int directions, int threads);
void forward(const ForwardParams& params, const Plan& plan, const Team& team);
void backward(const BackwardParams& params, const Plan& plan, const Team& team);

// Names of the instruction set variants this machine can run, ending with null, slowest first.
const char* const* isa_names();
// The variant in use: the fastest, or FUSEDRNN_CPU_ISA. Throws std::runtime_error on a bad name.
const char* isa_name();
// GFLOP/s of a loop of independent fp32 multiply-adds that touches registers only.
double fma_peak(const Team& team, double seconds);
// The kernels' own tanh or sigmoid over n elements, to hold its error to account.
void eval_activation(bool tanh_not_sigmoid, const float* x, float* y, int64_t n);

}  // namespace cpu

// On a GPU the products with all inputs and the weight gradients are the caller's; kernels make the
// recurrence between them. A row of x has S slots of H elements in `slots`, slot by slot in torch's
// gate order: i, f, g, o; r, z, n, h_n; one for an Elman cell. Before the recurrence the first G
// hold x W_ih' + b_ih; after it, when training, all hold what backward needs. Pointers are device
// pointers, `offsets` included (Problem::offsets stays on the host and is not read by kernels).
namespace cuda {

constexpr int64_t slots_of(Cell cell, bool training) {
  return cell == Cell::kGru && training ? 4 : gates_of(cell);
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
  return p.T <= kMost && p.B <= kMost && !(p.dtype == DType::kFloat64 && p.training);
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

}  // namespace cuda
}  // namespace fusedrnn
