// One instruction set variant of every CPU kernel. A variant's source file includes the standard
// headers, switches the target with a pragma, names its namespace and vector size, and includes
// this: so nothing of the standard library is compiled for a machine that may not be there.
#include "cells/all.h"
#include "cpu/backward.h"
#include "cpu/variants.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// A panel holds one vector of units, or four where a cell has one gate and H is wide enough.
template <class T, template <class, class, int> class Layer, Cell kCell, class Params>
void run_cell(const Params& params, const Plan& plan, const Team& team) {
  using C = typename CellOf<kCell>::Type;
  if constexpr (C::kGates == 1) {
    if (plan.unit_vectors == 4) {
      Layer<T, C, 4> layer(params, plan);
      return run(team, plan.threads, layer);
    }
  }
  Layer<T, C, 1> layer(params, plan);
  run(team, plan.threads, layer);
}

template <class T, template <class, class, int> class Layer, class Params>
void dispatch_cell(const Params& params, const Plan& plan, const Team& team) {
  with_cell(params.problem.cell,
            [&](auto cell) { run_cell<T, Layer, decltype(cell)::value>(params, plan, team); });
}

template <template <class, class, int> class Layer, class Params>
void dispatch(const Params& params, const Plan& plan, const Team& team) {
  if (params.problem.dtypes.computed == DType::kFloat32) {
    dispatch_cell<float, Layer>(params, plan, team);
  } else {
    dispatch_cell<double, Layer>(params, plan, team);
  }
}

template <class T, class C, int kUnitVectors>
using ForwardAsComputed = Forward<T, C, kUnitVectors, T>;
template <class T, class C, int kUnitVectors>
using ForwardOfBFloat16 = Forward<T, C, kUnitVectors, BFloat16>;

void forward(const ForwardParams& params, const Plan& plan, const Team& team) {
  if (params.problem.dtypes.stored == DType::kBFloat16) {
    dispatch_cell<float, ForwardOfBFloat16>(params, plan, team);
  } else {
    dispatch<ForwardAsComputed>(params, plan, team);
  }
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
                                dispatch<Backward>,
                                spin,
                                eval_activation};
  return kVariant;
}

}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
