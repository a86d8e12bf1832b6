// One instruction set variant of every CPU kernel. A variant's source file includes the standard
// headers, switches the target with a pragma, names its namespace and vector size, and includes
// this: so nothing of the standard library is compiled for a machine that may not be there.
#include "cells/all.h"
#include "cpu/backward.h"
#include "cpu/isa/variants.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class Layer, class Params>
void run_layer(const Params& params, const Plan& plan, const Team& team) {
  Layer layer(params, plan);
  run(team, plan.threads, layer);
}

// A panel holds one vector of units, or four where a cell has one gate and H is wide enough.
template <class Params, class T, template <class, class, int, class> class Layer, class S = T>
auto kernel_of(Cell cell, int unit_vectors) {
  using Kernel = void (*)(const Params&, const Plan&, const Team&);
  return with_cell(cell, [&](auto constant) -> Kernel {
    using C = typename CellOf<decltype(constant)::value>::Type;
    if constexpr (C::kGates == 1) {
      if (unit_vectors == 4) return run_layer<Layer<T, C, 4, S>, Params>;
    }
    return run_layer<Layer<T, C, 1, S>, Params>;
  });
}

ForwardKernel forward(const Problem& p, int unit_vectors) {
  if (p.dtypes.stored == DType::kBFloat16 && !p.frozen) {
    return kernel_of<ForwardParams, float, Forward, BFloat16>(p.cell, unit_vectors);
  }
  if (p.dtypes.computed == DType::kFloat32) {
    return kernel_of<ForwardParams, float, Forward>(p.cell, unit_vectors);
  }
  return kernel_of<ForwardParams, double, Forward>(p.cell, unit_vectors);
}

// There is no backward pass through weights that are stored otherwise than they are computed with.
template <class T, class C, int kUnitVectors, class S>
using BackwardAsStored = Backward<T, C, kUnitVectors>;

BackwardKernel backward(const Problem& p, int unit_vectors) {
  if (p.dtypes.computed == DType::kFloat32) {
    return kernel_of<BackwardParams, float, BackwardAsStored>(p.cell, unit_vectors);
  }
  return kernel_of<BackwardParams, double, BackwardAsStored>(p.cell, unit_vectors);
}

template <class T, class S>
void pack_all(const ForwardParams& params, const Plan& plan, void* to) {
  const Geometry g(params.problem.cell, params.problem.H, kLanes<T>);
  pack_weights<T, S, T>(params, plan, g, PackedWeights<T>(to, params.problem, g, plan), 0, 1);
}
template <class T, class S>
void unpack_one(const Problem& p, const Plan& plan, const void* packed, bool recurrent, void* to) {
  const Geometry g(p.cell, p.H, kLanes<T>);
  const PackedWeights<T> weights(const_cast<void*>(packed), p, g, plan);  // only read
  unpack_side<T>(p, plan, g, recurrent ? Side::kRecurrent : Side::kInput, weights,
                 static_cast<S*>(to));
}

// f(T, S), empty values of the types that weights are computed with and stored in.
template <class F>
auto with_types(const Problem& p, const F& f) {
  if (p.dtypes.stored == DType::kInt8) return f(float(), Int8());
  if (p.dtypes.stored == DType::kBFloat16) return f(float(), BFloat16());
  return p.dtypes.computed == DType::kFloat32 ? f(float(), float()) : f(double(), double());
}
PackKernel pack(const Problem& p) {
  return with_types(
      p, [](auto t, auto s) -> PackKernel { return pack_all<decltype(t), decltype(s)>; });
}
UnpackKernel unpack(const Problem& p) {
  return with_types(
      p, [](auto t, auto s) -> UnpackKernel { return unpack_one<decltype(t), decltype(s)>; });
}

// FLOP of `rounds` rounds of independent multiply-adds that stay in registers.
double spin(int64_t rounds) {
  using V = Vec<float>;
  constexpr int n = FUSEDRNN_VECTOR_BYTES == 64 ? 24 : 12;
  V::Type sum[n];
#pragma GCC unroll 24
  for (int i = 0; i < n; ++i) sum[i] = V(float(i)).v;
  V::Type x = V(0.999f).v, y = V(1e-6f).v;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < n; ++i) {
      sum[i] = sum[i] * x + y;
      FUSEDRNN_KEEP(sum[i]);
    }
  }
  V::Type all{};
#pragma GCC unroll 24
  for (int i = 0; i < n; ++i) all += sum[i];
  volatile float sink = all[0];  // or the loop would be dropped
  (void)sink;
  return 2.0 * n * kLanes<float> * double(rounds);
}

void eval_activation(bool tanh_not_sigmoid, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    const int valid = int(std::min<int64_t>(n - i, kLanes<float>));
    const Vec<float> v = Vec<float>::load(x + i, valid);
    (tanh_not_sigmoid ? fusedrnn::tanh(v) : fusedrnn::sigmoid(v)).store(y + i, valid);
  }
}

}  // namespace

const Variant& variant() {
  static const Variant kVariant{FUSEDRNN_VECTOR_BYTES,
                                {kTileRows<1>, kTileRows<2>, kTileRows<3>, kTileRows<4>},
                                forward,
                                backward,
                                pack,
                                unpack,
                                spin,
                                eval_activation};
  return kVariant;
}

}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
