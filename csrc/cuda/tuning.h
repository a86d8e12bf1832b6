// Every constant of the cost model, in one table, each with its source. This project measured none
// of them on a GPU. "Simulated": we ran the kernels' compiled code (sm_90) through a model of the
// instruction issue. "Counted in SASS": we counted instructions in that code. "Published": others
// measured it on their GPU. "Estimate": reasoned, or guessed. `fusedrnn tune` measures whole steps
// on the user's GPU; its figures then replace the model's.
#pragma once

namespace fusedrnn::cuda {

struct Constant {
  double value;
  const char* unit;
  const char* source;
  const char* date;
  constexpr operator double() const { return value; }
};

// A step of a persistent kernel is a multiply and a wait. The multiply takes as long as the slower
// of two things, multiply-adds and shared memory. The wait is for reduction, activations and
// barrier; in a cluster also for the exchange of h, which we expect to take 250 to 450 cycles more
// than a block's barrier. Check, LSTM forward, H=128, one block of 1, 2, 4 rows: simulated 1215,
// 1839, 3353 cycles, by this formula 1170, 1890, 3330.
inline constexpr Constant kIssue{1.25, "issue slots a multiply-add", "simulated", "2026-11"};
inline constexpr Constant kBlockWait{530, "cycles", "simulated", "2026-11"};
inline constexpr Constant kClusterWait{880, "cycles", "estimate", "2026-11"};
inline constexpr Constant kRowWait{80, "cycles a row but the first", "simulated", "2026-11"};
inline constexpr Constant kWeightRead{4, "cycles a warp's float4", "counted in SASS", "2026-11"};
inline constexpr Constant kStateRead{2, "cycles a warp's float4", "counted in SASS", "2026-11"};
inline constexpr Constant kUsedRegisters{48, "a thread, no row", "counted in SASS", "2026-11"};
inline constexpr Constant kRowRegisters{16, "a thread and row", "counted in SASS", "2026-11"};

// Reading weights from L2. With all multiprocessors reading this is 5.5 TB/s on an H100.
inline constexpr Constant kL2Bytes{21, "bytes a cycle and multiprocessor", "estimate", "2026-11"};
inline constexpr Constant kL2BytesAlone{32, "the same, few reading", "estimate", "2026-11"};

// Matrix products. On an H200 these are 45 of 67 TFLOP/s in fp32 and 250 of 535 in TF32.
inline constexpr Constant kProductShare{0.67, "of the fp32 peak", "estimate", "2026-11"};
inline constexpr Constant kTf32Share{0.47, "of the TF32 peak", "estimate", "2026-11"};

// Kernels one after the other in a stream. Each step of our stepwise path launches a product and a
// kernel, which takes the host longer than the device.
inline constexpr Constant kLaunch{2.2, "us", "estimate", "2026-11"};
inline constexpr Constant kPointwise{2.3, "us", "estimate", "2026-11"};
inline constexpr Constant kPointwiseBack{2.8, "us", "estimate", "2026-11"};
inline constexpr Constant kLeastStep{4.7, "us on the device", "estimate", "2026-11"};
inline constexpr Constant kHostStep{9, "us on the host", "estimate", "2026-11"};

// cuDNN has a persistent kernel of its own up to some H (its time: xwang233/code-snippet, B=16,
// H=128, LSTM forward, GPU unstated). Its standard path launches as many kernels as our stepwise
// one but overlaps some, and runs the layers of a stack side by side, as a wavefront.
inline constexpr Constant kTorchPersistent{2.65, "us a step", "published", "2026-11"};
inline constexpr Constant kTorchMost{192, "H, LSTM and GRU, forward", "published", "2026-11"};
inline constexpr Constant kTorchMostBack{128, "the same, backward", "published", "2026-11"};
inline constexpr Constant kTorchMostElman{384, "H, RNN, forward", "published", "2026-11"};
inline constexpr Constant kTorchMostElmanBack{256, "the same, backward", "published", "2026-11"};
inline constexpr Constant kTorchShare{0.9, "of such steps", "estimate", "2026-11"};
inline constexpr Constant kWavefront{3, "layers at once", "estimate", "2026-11"};

// Products in chunks beside the recurrence. They run on the multiprocessors that it does not use,
// and lose some speed to sharing L2. Each chunk costs the host time for launches and events.
inline constexpr Constant kBesideShare{0.8, "of a product's rate", "estimate", "2026-11"};
inline constexpr Constant kLeastBeside{0.1, "of the multiprocessors", "estimate", "2026-11"};
inline constexpr Constant kChunkHost{20, "us of host a chunk", "estimate", "2026-11"};
inline constexpr Constant kLeastChunk{16, "steps", "estimate", "2026-11"};
inline constexpr Constant kChunkGain{0.05, "of the time", "estimate", "2026-11"};
inline constexpr Constant kMostSlots{268435456, "bytes of slots at once", "estimate", "2026-11"};

// Two estimates we do not trust before a GPU has measured them: that of the exchange in a cluster,
// where a block kernel costs little more; and that of many waves of blocks, where cuDNN may use
// tensor cores.
inline constexpr Constant kClusterMargin{0.15, "of the cost of a block", "estimate", "2026-11"};
inline constexpr Constant kTrustedWaves{2, "waves of blocks", "estimate", "2026-11"};

// Limits of a multiprocessor, by compute capability from `sm` up to the next row's: threads, and
// multiply-adds a cycle in fp32, fp64 and, on tensor cores, TF32. Published by NVIDIA, 2020 to
// 2025; 12.x is a GeForce's.
struct Rates {
  int sm;
  int threads, fp32, fp64, tf32;
};
inline constexpr Rates kRates[] = {
    {0, 1024, 64, 2, 0},       {80, 2048, 64, 32, 512},  {81, 1536, 128, 2, 256},
    {90, 2048, 128, 64, 1024}, {91, 2048, 128, 2, 1024}, {100, 2048, 128, 64, 2048},
    {101, 2048, 128, 2, 2048}, {120, 1536, 128, 2, 128},
};

// For a device whose driver reports no clock, as under some vGPUs and on Tegra. Without one, costs
// in cycles would be infinite and any plan as good as another. At 1 GHz the recurrence looks at
// most twice as slow as it is, compared with launches, whose cost is in microseconds.
inline constexpr Constant kAssumedClock{1, "GHz", "estimate", "2026-11"};

}  // namespace fusedrnn::cuda
