// What forward did not keep, made again for backward: piece by piece of so many steps, of the h
// that is in y and of c as it was before the piece.
#pragma once

#include "cpu/denormals.h"
#include "cpu/forward.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class T, class C, int kUnitVectors>
class Again {
 public:
  Again(const BackwardParams& params, const Plan& backward, const Geometry& g, void* workspace,
        T* piece)
      : p_(params.problem),
        g_(g),
        piece_(piece),
        pieces_{p_.rows(), backward.every},
        plan_(forward_of(backward)),
        params_(forward_params(params, workspace)) {
    if (makes_again(p_)) forward_.emplace(params_, plan_, typename Pass::Again{});
  }

  bool wanted() const { return forward_.has_value(); }
  // Before the first piece, and before a barrier.
  void prepare(int id, int n) {
    if (forward_) forward_->prepare(id, n);
  }
  // Makes piece m in the place of the one before it, when nobody reads that any more.
  void make(int64_t m, int id, int n, Barrier& barrier, Reserve<T>& keep) {
    const Reserve<T> piece(piece_, pieces_, m, p_, g_);
    barrier.wait(n);
    if (id == 0) {
      keep = piece;
      forward_->keep(piece);
    }
    barrier.wait(n);
    {
      [[maybe_unused]] const FlushDenormals as_forward(false);
      forward_->again(piece, m, id, n);
    }
    barrier.wait(n);
  }

 private:
  using Pass = Forward<T, C, kUnitVectors, T>;

  static ForwardParams forward_params(const BackwardParams& of, void* workspace) {
    ForwardParams a{};
    a.problem = of.problem;
    a.x = of.x;
    a.h0 = of.h0;
    a.c0 = of.c0;
    a.reset_h = of.reset_h;
    a.reset_c = of.reset_c;
    a.reset_rows = of.reset_rows;
    a.w_ih = of.w_ih;
    a.w_hh = of.w_hh;
    a.b_ih = of.b_ih;
    a.b_hh = of.b_hh;
    a.w_hr = of.w_hr;
    a.y = const_cast<void*>(of.y);  // only read
    a.ldy = of.ldy;
    a.reserve = const_cast<void*>(of.reserve);  // likewise
    a.workspace = workspace;
    return a;
  }

  const Problem& p_;
  const Geometry& g_;
  T* const piece_;
  const Pieces pieces_;
  const Plan plan_;
  const ForwardParams params_;
  std::optional<Pass> forward_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
