// Plans a pass over a layer: every choice that its kernel asks for, and the reasons where somebody
// asks for them, each beside the rule that it tells of. The numbers stand in tuning.h.
#include <limits>
#include <sstream>

#include "cpu/isa/variants.h"
#include "cpu/layout.h"
#include "cpu/params.h"
#include "model/choice.h"

namespace fusedrnn::cpu {
namespace {

// So many of a thing: "1 row", "2 rows".
struct Count {
  int64_t n;
  const char* noun;
};
std::ostream& operator<<(std::ostream& out, const Count& count) {
  return out << count.n << ' ' << count.noun << (count.n == 1 ? "" : "s");
}

// Reasons in the making. The parts of a sentence are put together only where somebody asked.
class Words {
 public:
  explicit Words(Reasons* to) : to_(to) {}
  template <class... Parts>
  void because(const Parts&... parts) const {
    if (to_) to_->because(text(parts...));
  }
  template <class Candidate, class... Parts>
  void reject(const Candidate& candidate, const Parts&... parts) const {
    if (to_) to_->reject(text(candidate), text(parts...));
  }

 private:
  template <class... Parts>
  static std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
  }

  Reasons* const to_;
};

// --- threads and what they share

int usable_threads(const Problem& p, int threads) {
  const double flop =
      2.0 * double(p.rows().total()) * double(gates_of(p.cell) * p.H) * double(p.I + p.P);
  return int(std::clamp(flop / kFlopPerThread, 1.0, double(std::max(threads, 1))));
}

int64_t bytes_of_w_hh(const Problem& p, int64_t padded_rows) {
  return padded_rows * p.P * size_of(p.dtypes.computed);
}

// Whether to split by hidden units though there are rows for all threads (kBackwardRowsPerThread).
bool prefers_hidden(const Problem& p, int threads, const Geometry& g, bool forward,
                    const Words& say) {
  const auto no = [&](const auto&... why) {
    say.reject("split by hidden units", why...);
    return false;
  };
  if (bytes_of_w_hh(p, g.panels * g.depth()) <= kL2Bytes) {
    return no("needs a barrier every step; W_hh stays in L2");
  }
  if (g.panels < kPanelsPerThread * threads) {
    return no("H fills ", Count{g.panels, "panel"}, ", fewer than ", kPanelsPerThread,
              " for each thread");
  }
  if (forward) return true;
  if (p.B > kBackwardRowsPerThread * threads) {
    return no("needs two barriers every step, which more than ", kBackwardRowsPerThread,
              " rows a thread do not pay for");
  }
  for (const int64_t columns : {p.P, p.I}) {
    const int64_t groups = groups_of(columns, g.lanes);
    if (groups % threads != 0 && groups < kGroupsPerThread * threads) {
      return no(Count{groups, "group"}, " of columns leave threads without work");
    }
  }
  return true;
}

// Threads, and what each of them owns.
void share_out(const Problem& p, int threads, const Geometry& g, bool forward, Plan& plan,
               const Words& say) {
  plan.split = Split::kNone;
  plan.threads = usable_threads(p, threads);
  if (plan.threads < threads) {
    say.reject(Count{threads, "thread"}, "under ", kFlopPerThread / 1e6,
               " MFLOP a thread, starting one costs more");
  }
  if (plan.threads == 1) {
    return say.because(threads > 1 ? "too little work for a second thread to pay"
                                   : "one thread is available");
  }
  const bool few_rows = p.B < plan.threads;
  if (!few_rows && !prefers_hidden(p, plan.threads, g, forward, say)) {
    plan.split = Split::kBatch;
    say.because("each thread owns rows of the batch for the whole sequence and waits for nobody");
    if (p.packed) say.because("packed rows are shared out by total length");
    return;
  }
  if (few_rows) {
    say.reject("split by batch rows", Count{p.B, "row"}, " for ", plan.threads, " threads");
  } else {
    say.reject("split by batch rows", "every thread would read all of W_hh every step");
  }
  if (g.panels < plan.threads) {
    say.reject(Count{plan.threads, "thread"}, "H fills ", Count{g.panels, "panel"}, " of ",
               g.units(), " units, and a thread owns one at least");
    plan.threads = int(g.panels);
  }
  if (plan.threads == 1) {
    return say.because("fewer rows than threads, and one panel holds all hidden units");
  }
  plan.split = Split::kHidden;
  const char* const owns = ": each thread owns panels of hidden units, one barrier a step";
  if (few_rows) return say.because("fewer rows than threads", owns);
  say.because("W_hh overflows L2, ", bytes_of_w_hh(p, g.panels * g.depth()) >> 10, " KiB of ",
              kL2Bytes >> 10, owns);
}

// --- weights

bool has_few_rows(const Problem& p) { return p.rows().total() <= kFewRows; }
bool has_few_steps(const Problem& p) {
  return p.T == 1 || (p.T <= kFewSteps && p.P >= kFewStepsFromP) ||
         (p.T <= kSomeSteps && p.P >= kSomeStepsFromP);
}

// The narrow products that a problem allows for, where this machine has some.
const Narrow* narrow_for(const Problem& p, const Geometry& g) {
  return p.dtypes.multiplied == p.dtypes.computed ? nullptr
                                                  : narrow_of(p.dtypes.multiplied, g.lanes);
}

// Of one step no row's bits may depend on how many rows there are: so it is never packed.
WeightsRead read_forward(const Problem& p, const Narrow* narrow, const Words& say) {
  const int64_t rows = p.rows().total();
  if (p.frozen) {
    say.because("the weights are frozen: they were packed once");
    return WeightsRead::kPacked;
  }
  if (p.T == 1 || (has_few_steps(p) && rows < kRowsThatPayForPacking)) {
    say.reject("packed weights", "packing costs more than it saves in ", Count{p.T, "step"}, " of ",
               Count{rows, "row"}, " in all");
    return WeightsRead::kInPlace;
  }
  if (has_few_steps(p)) {
    say.reject("weights read in place", Count{rows, "row"}, " pay for packing, ",
               kRowsThatPayForPacking, " or more do");
  } else {
    say.reject("weights read in place", Count{p.T, "step"}, " with P = ", p.P, " pay for packing");
  }
  if (narrow || p.dtypes.stored != DType::kBFloat16) return WeightsRead::kPacked;
  if (p.B > kPairsBatch) {
    say.reject("W_hh in bfloat16", "with more than ", kPairsBatch,
               " rows, widening it every step costs more than its fewer bytes save");
    return WeightsRead::kPacked;
  }
  say.reject("W_hh in float32", "at most ", kPairsBatch,
             " rows wait for it every step, and bfloat16 is half of the bytes");
  return WeightsRead::kPackedInPairs;
}

void tell_of_narrow(const Problem& p, const Plan& plan, const Words& say) {
  if (p.dtypes.multiplied == p.dtypes.computed) return;
  if (plan.narrow) {
    const bool low = plan.narrow->dtype == DType::kBFloat16;
    return say.because("products of ",
                       low ? "bfloat16, summed in float32" : "int8, summed in int32", ", by ",
                       plan.narrow->name);
  }
  say.reject("products of bfloat16", plan.weights == WeightsRead::kInPlace
                                         ? "weights that are read in place are not packed in words"
                                         : "the instruction set in use has none");
}

WeightsRead read_backward(const Problem& p, const Words& say) {
  if (has_few_steps(p) && has_few_rows(p)) {
    say.reject("packed weights", "packing costs more than it saves for at most ", kFewRows,
               " rows in all");
    return WeightsRead::kInPlace;
  }
  say.reject("weights read in place", "the steps or rows are many enough to pay for packing");
  return WeightsRead::kPacked;
}

// --- chunks, and what goes back

// The reserve is laid out by chunks, so both passes have the same.
int64_t stretch_of(const Problem& p, const Geometry& g) {
  const int64_t row = g.panels * g.row() * size_of(p.dtypes.computed);  // bytes
  const bool half = g.lanes * size_of(p.dtypes.computed) < 64 && kChunkRows * row >= kL2Bytes &&
                    kHalfChunkRows * row <= kL2Bytes;
  const int64_t rows = !p.training && p.B <= kSmallChunkBatch ? kSmallChunkRows
                       : half                                 ? kHalfChunkRows
                                                              : kChunkRows;
  return std::clamp<int64_t>(rows / std::max<int64_t>(p.B, 1), 1, std::max<int64_t>(p.T, 1));
}

int64_t every_of(const Problem& p, int64_t stretch) {
  return p.keeps_some() ? round_up(std::min(p.every, p.T), stretch) : 0;
}

int64_t columns_in_place(const Problem& p, int64_t columns, int lanes) {
  const bool wide = columns >= 2 * kVectorsPerGroup * lanes;
  return wide && has_few_rows(p) ? columns / lanes * lanes : 0;
}

// Going back, few rows are summed where torch wants them, and the weights read where they lie:
// words of either would cost more than the products.
bool pays_for_words(const Problem& p) { return !has_few_rows(p); }

void plan_gradients(const Problem& p, Plan& plan) {
  const int64_t element = size_of(p.dtypes.computed),
                bytes = gates_of(p.cell) * p.H * p.I * element;
  plan.packs_inputs_by_chunk = plan.weights != WeightsRead::kInPlace && !plan.narrow &&
                               bytes > kPackedByChunkBytes &&
                               p.I > kVectorsPerGroup * plan.lanes * (plan.threads - 1);
  plan.chunks = plan.packs_inputs_by_chunk ? 2 : plan.threads > 1 ? 3 : 1;
  plan.input_columns_in_place = columns_in_place(p, p.I, plan.lanes);
  plan.state_columns_in_place = columns_in_place(p, p.P, plan.lanes);
  plan.gathers_from =
      has_few_rows(p) ? std::numeric_limits<int64_t>::max() : kGatheredRowBytes / element;
}

Geometry geometry_of(const Problem& p) {
  const int bytes = chosen_isa().variant->vector_bytes;
  return {p.cell, p.H, bytes / int(size_of(p.dtypes.computed))};
}

// What both passes plan alike.
Plan plan_of(const Problem& p, int threads, const Geometry& g, bool forward, Reasons* reasons) {
  const Isa& isa = chosen_isa();
  if (reasons) tell_of_isas(*reasons);
  Plan plan{};
  plan.isa = isa.name;
  plan.lanes = g.lanes;
  plan.unit_vectors = g.unit_vectors;
  plan.vectors = g.vectors;
  plan.tile_rows = isa.variant->tile_rows[g.vectors - 1];
  plan.panels = g.panels;
  plan.stretch = stretch_of(p, g);
  plan.every = every_of(p, plan.stretch);
  const Words say(reasons);
  share_out(p, threads, g, forward, plan, say);
  plan.narrow = forward || pays_for_words(p) ? narrow_for(p, g) : nullptr;
  plan.weights = forward ? read_forward(p, plan.narrow, say) : read_backward(p, say);
  if (plan.weights == WeightsRead::kInPlace) plan.narrow = nullptr;
  if (forward) tell_of_narrow(p, plan, say);
  plan.reserve_size = reserve_width(p) * kept_rows(p);
  return plan;
}

}  // namespace

const char* name_of(Split split) {
  switch (split) {
    case Split::kNone:
      return "none";
    case Split::kBatch:
      return "batch";
    case Split::kHidden:
      return "hidden";
  }
  return "";
}

const char* name_of(WeightsRead weights) {
  switch (weights) {
    case WeightsRead::kPacked:
      return "packed";
    case WeightsRead::kPackedInPairs:
      return "packed, W_hh in bfloat16";
    case WeightsRead::kInPlace:
      return "read in place";
  }
  return "";
}

int64_t kept_rows(const Problem& p) {
  return p.keeps_some() ? p.rows().total() / p.every : p.rows().total();
}

int64_t reserve_width(const Problem& p) {
  return p.training ? Reserve<char>(nullptr, p, geometry_of(p)).width : 0;
}

bool pairs_directions(const Problem& p) {
  return bytes_of_w_hh(p, gates_of(p.cell) * p.H) <= kAtOnceBytes;
}

int threads_of_direction(const Problem& p, int directions, int threads, Reasons* reasons) {
  if (directions < 2) return threads;
  const Words say(reasons);
  const auto in_turn = [&](const auto&... why) {
    say.reject("both directions at once", why...);
    return threads;
  };
  if (threads % 2) return in_turn(Count{threads, "thread"}, " cannot be halved");
  if (!pairs_directions(p)) {
    return in_turn("W_hh of over ", kAtOnceBytes >> 20, " MiB would be packed twice at a time");
  }
  if (usable_threads(p, threads) == 1) return in_turn("too little work for a second thread to pay");
  say.because("both directions run at once, each by half of the threads");
  say.reject("one direction after the other", "all threads would wait for each other");
  return threads / 2;
}

Plan plan_forward(const Problem& p, int threads, Reasons* reasons) {
  const Geometry g = geometry_of(p);
  Plan plan = plan_of(p, threads, g, true, reasons);
  plan.forward = chosen_isa().variant->forward(p, plan.unit_vectors);
  plan.workspace_bytes = ForwardBuffers<char>(nullptr, p, g, plan).used;
  return plan;
}

int64_t packed_bytes(const Problem& p) {
  return PackedWeights<char>(nullptr, p, geometry_of(p), plan_forward(p, 1)).used;
}

void pack(const ForwardParams& params, void* to) {
  chosen_isa().variant->pack(params.problem)(params, plan_forward(params.problem, 1), to);
}

void unpack(const Problem& p, const void* packed, bool recurrent, void* to) {
  chosen_isa().variant->unpack(p)(p, plan_forward(p, 1), packed, recurrent, to);
}

Plan plan_backward(const Problem& p, int threads, Reasons* reasons) {
  const Geometry g = geometry_of(p);
  Plan plan = plan_of(p, threads, g, false, reasons);
  plan_gradients(p, plan);
  if (makes_again(p)) {
    const Plan forward = plan_of(p, threads, g, true, nullptr);
    plan.again = forward.weights;
    plan.narrow_again = forward.narrow;
  }
  plan.backward = chosen_isa().variant->backward(p, plan.unit_vectors);
  plan.workspace_bytes = BackwardBuffers<char>(nullptr, p, g, plan).used;
  return plan;
}

}  // namespace fusedrnn::cpu
