// Every number by which the CPU plan and its kernels decide, with its unit and what it was measured
// by. Zen 5 and the Intel Xeon have AVX-512, Zen 3 has AVX2. A shape such as T100 B64 H128 means
// I = H unless said otherwise. What follows from the number of registers stands in gemm.h.
#pragma once

#include <cstdint>

namespace fusedrnn::cpu {

// --- caches

// Bytes of L2 that a thread can count on: machines with AVX-512 have 1 MiB or more, others half.
constexpr int64_t kL2Bytes = 512 << 10;

// --- threads

// FLOP that a thread must have to be worth starting: a fork and join takes 3 to 5 us.
constexpr double kFlopPerThread = 4e5;
// Panels of hidden units, and groups of columns going back, that each thread must have on average
// where their number is no multiple of the threads, so that no thread waits long for another.
constexpr int kPanelsPerThread = 4, kGroupsPerThread = 4;
// Batch rows a thread, at most, with which backward is split by hidden units. Split by rows, each
// thread reads all of W_hh every step. Where W_hh overflows L2, forward is faster split by hidden
// units, 1/n of the weights each, for a barrier a step (2 threads of a Zen 5: H=512 inference 28.3
// -> 26.4 ms, H=1024 training 339 -> 253). Backward then has two barriers, gate gradients from
// every thread, and products whose columns come in groups: that pays for few rows (2 threads of an
// Intel Xeon, LSTM forward and backward: T50 H512 B4 1.25 times as fast, B16 1.09, B64 1.00) and
// for no others (Zen 5, H=256: 4.66 ms by rows, 4.90 by units).
constexpr int64_t kBackwardRowsPerThread = 8;
// Bytes of a direction's W_hh, at most, with which two directions run at once, each by half of the
// threads: fewer threads wait for each other, each for more rows (2 threads of a Zen 5, times
// torch.nn's speed in turn and at once: LSTM T100 B32 I300 H150 training 1.69 and 1.97, T100 B1
// I128 H128 inference 2.2 and 3.4, T20 B16 I64 H64 2.3 and 3.4). Wider layers gain little, and
// would pack twice as many weights at a time.
constexpr int64_t kAtOnceBytes = 2 << 20;

// How a thread waits for the others: it looks so often, then for so many microseconds, then yields.
// A thread that yields to another process gives it a whole time slice, 3 ms, so it does not do so
// while the others are only late (2 threads of a Zen 3, a busy process beside them: LSTM T100 B1
// H128 14 -> 3.5 ms). With more threads than cores the others may not be running: then it must.
constexpr int kBarrierSpins = 1024, kBarrierMicroseconds = 10;
constexpr int kHalfSpins = 4096;  // of a thread whose half of a team has not called it yet
// Parts of a thread's share of a round, and how many of them it keeps to itself, see team.h.
constexpr int kParts = 8, kOwnParts = 6;

// --- panels and chunks

// A cell of one gate has panels of four vectors of units, unless the padding to four makes H more
// than so many quarters of what padding to one makes it.
constexpr int64_t kMostQuartersOfWidePanels = 5;

// Rows of a chunk: enough to share a pass over the weights among, few enough that a chunk's gates
// stay in L2. Half as many where that fits 512 KiB and the whole does not, without AVX-512 (Zen 3,
// LSTM T100 B64 H128: 24.9 -> 24.2 ms). A quarter where at most 8 batch rows wait for W_hh to come
// from L2 and nothing is kept for backward: W_hh then has more room there (Zen 5: B4 on two threads
// 0.469 -> 0.441 ms, B8 on one 1.20 -> 1.16).
constexpr int64_t kChunkRows = 256, kHalfChunkRows = 128, kSmallChunkRows = 64;
constexpr int64_t kSmallChunkBatch = 8;

// k steps of a block of a product. With AVX-512 a tile uses each weight vector 6 times, so L2 keeps
// up and longer blocks win (Zen 5, K=512: 128 steps 249, 256 steps 260, 512 steps 267 of 272
// GFLOP/s). With 16 registers it uses one 3 times, so the block has to stay in L1: 128 steps of 4
// vectors are 16 KiB.
constexpr int64_t kBlockSteps = 128, kBlockStepsAvx512 = 512;

// Bytes of gates whose recurrent products are made before their cells: of few rows several panels
// together, because their cells are chains of instructions that run side by side.
constexpr int64_t kGateBytesTogether = 8 << 10;

// --- weights: packed, in pairs, or read where they lie

// One time step never pays for packing the weights (LSTM H=128: 21 us packed, 10 not), nor do few
// rows of at most 4 steps from P = 256 on, or of at most 16 from P = 512 on. Many rows do pay (Zen
// 3, LSTM H512 T10, packed against not: B1 0.55 times as fast, B8 1.06, B64 1.29), which is from so
// many rows on, counted over all steps.
constexpr int64_t kFewSteps = 4, kFewStepsFromP = 256;
constexpr int64_t kSomeSteps = 16, kSomeStepsFromP = 512;
constexpr int64_t kRowsThatPayForPacking = 80;
// Going back, copies of wide weights and of their gradients pay from fewer rows on (RNN T2 B1
// H2048: 34 ms with copies, 4 without; Zen 3, LSTM H1024, 100 rows: 1.5 times as fast with copies).
// At most so many rows are read and summed in place. They are one chunk.
constexpr int64_t kFewRows = 20;
// Batch rows, at most, for which W_hh stays in bfloat16, in pairs of vectors: they wait for W_hh to
// come from L2 or beyond anew every step. With more rows, widening it in registers costs more than
// half of the bytes saves.
constexpr int64_t kPairsBatch = 4;

// Bytes of W_ih above which backward packs it by chunk rather than once, for dx: each thread then
// packs what it needs for every two chunks anew, a block of k at a time. That takes little room and
// is no slower (LSTM T20 B128 H1024: 321 ms packed once, 309 for every chunk). Narrower weights
// stay in L2 when packed once, while rows from another thread cost more (T100 B64 H128: 31 ms and
// 37).
constexpr int64_t kPackedByChunkBytes = 2 << 20;

// --- weight gradients

// Bytes of a row of x or h from which on its columns are gathered, so many columns and rows at a
// time, before they are multiplied: otherwise each element of a column is in another page, or falls
// into the same few sets of L1 (dW of 1,024 columns on a Zen 3: 61 -> 81 GFLOP/s; of 512 columns 75
// -> 82, of 256 columns 85 -> 80).
constexpr int64_t kGatheredRowBytes = 2048;
constexpr int64_t kGatheredColumns = 96, kGatheredRows = 256;

// --- products

// k steps that a tile's loop takes at once, in float32 from AVX2 on: a Zen 3 runs a tile of 12 FMA
// in 22 instructions at 73 GFLOP/s of 102, of 20 FMA at 86, on a core shared with others (alone 96
// and 98); an Intel Xeon with AVX-512 runs LSTM H512 and H1024 forward and backward 1.06 times as
// fast. Nowhere else, because it was measured there alone and the kernels take 1.4 times as long to
// compile (AVX2).
constexpr int kUnrolledSteps = 4;

// Rows of a product from which on its tiles fetch the next block of weights into L2. With AVX-512
// blocks are long and tiles few, so a tile would have to fetch more before it begins than it can
// bear: there it fetches as it goes, at most so many cache lines every kUnrolledSteps (an Intel
// Xeon, LSTM inference H512, one thread: B64 1.12 times as fast, B32 1.11, B16 1.15). Elsewhere it
// fetches its share before it begins.
constexpr int kFetchingRowsAvx512 = 12, kFetchingRows = 48;
constexpr int kFetchedLines = 4;

// Bytes of a row of weights, at most, with which a product of one row reads the rows of unpacked
// weights one after the other. From L2 that is faster than all at once (Zen 5, two matrices of H =
// 128: 8.0 and 10.3 thousand cycles). Longer rows come from beyond L2, and there it is slower. It
// is slower for bfloat16 without AVX-512 too, where widening takes too many instructions to begin
// the next row before the sum of one is done (AVX2 on a Zen 3, one step of LSTM H512 against
// float32: 0.74 to 0.81 times as fast one after the other, 1.04 to 1.24 all at once).
constexpr int64_t kRowsInTurnBytes = 1024;

}  // namespace fusedrnn::cpu
