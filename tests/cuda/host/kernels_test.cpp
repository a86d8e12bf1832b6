// The CUDA kernels against the scalar reference in double, every row of the table of persistent
// kernels and the stepwise ones, on the shim. What a kernel has to fill holds nan before, and nan
// stands around everything and between the rows of what is strided, so that an element never
// written, one read before it was, or one that is not its own shows.
//
// Arguments, all optional: what to run (all, LSTM, GRU, RNN, stepwise, planned, long, or rows of
// the table: 3,14), the schedule (in-order, random, starving), its seed, and n k: the k-th of each
// n problems.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/tiles.h"
#include "paths.h"
#include "problem.h"
#include "shim.h"

namespace fusedrnn::cuda {
namespace {

constexpr int kStepwise = -1, kPlanned = -2;  // in place of a row of the table

Plan plan_of(int tile, Pass pass, const Problem& problem) {
  const Tile& t = kTiles[tile];
  const Shape shape = pass == Pass::kForward ? forward_shape(t) : backward_shape(t);
  const int64_t groups = (problem.B + t.rows - 1) / t.rows;
  return {.kernel = t.cluster > 1 ? Kernel::kCluster : Kernel::kBlock,
          .tile = tile,
          .hidden = t.hidden,
          .cluster = t.cluster,
          .rows = t.rows,
          .threads = shape.threads,
          .registers = shape.registers(),
          .shared_bytes = shape.shared_bytes,
          .blocks = groups * t.cluster,
          .chunk = 0,
          .step_us = 0,
          .recurrence_us = 0,
          .yields = false,
          .measured = false};
}

// What the plan for the pretended GPU says; it must say what the table does.
Plan planned(Pass pass, const Problem& problem, int directions, std::string& wrong) {
  int error = 0;
  const Restriction persistent = Restriction::to_tile(-1);
  const std::optional<Plan> found =
      plan(pass, problem, {directions, 1, true}, device(0, &error), {}, persistent);
  if (!found) {
    wrong = "no persistent kernel is planned";
    return {};
  }
  const Plan made = *found;
  const Plan hand = plan_of(made.tile, pass, problem);
  if (made.kernel != hand.kernel || made.hidden != hand.hidden || made.cluster != hand.cluster ||
      made.rows != hand.rows || made.threads != hand.threads || made.registers != hand.registers ||
      made.shared_bytes != hand.shared_bytes || made.blocks != hand.blocks)
    wrong = "the plan is not that of row " + std::to_string(made.tile) + " of the table";
  return made;
}

template <class T>
Buffer<T> filled(const Drawn& d, const Doubles& values, int64_t rows) {
  if (values.empty()) return {};
  return Buffer<T>(rows, int64_t(values.size()) / rows, d.skip).put(values);
}

template <class T>
Buffer<T> shared_rows(const Drawn& d, int64_t stride) {
  return Buffer<T>(d.problem.rows().total(), d.directions * d.problem.H, stride, d.skip);
}

template <class T>
void put_direction(Buffer<T>& to, const Doubles& values, int64_t H, int direction) {
  for (size_t i = 0; i < values.size(); ++i)
    to(int64_t(i) / H, direction * H + int64_t(i) % H) = T(values[i]);
}

Doubles side_by_side(const Drawn& d, Doubles Recurrence::* member) {
  const int64_t H = d.problem.H, N = d.problem.rows().total();
  Doubles all;
  for (int64_t row = 0; row < N; ++row) {
    for (int i = 0; i < d.directions; ++i) {
      const Doubles& one = d.direction[i].*member;
      all.insert(all.end(), one.begin() + row * H, one.begin() + (row + 1) * H);
    }
  }
  return all;
}

// Rows of the first G of S slots.
Doubles widened(const Doubles& x, int64_t G, int64_t S, int64_t H) {
  Doubles wide(x.size() / size_t(G * H) * size_t(S * H), NAN);
  for (size_t i = 0; i < x.size(); ++i)
    wide[i / size_t(G * H) * size_t(S * H) + i % size_t(G * H)] = x[i];
  return wide;
}

void note(std::string& wrong, const std::string& other) {
  if (wrong.empty()) wrong = other;
}

// What stands in `slots` must have been prefetched from the fifth step on, where every step has as
// many rows.
std::string check_prefetched(const Drawn& d, int way, int direction, Buffer<float>& slots) {
  const Problem& p = d.problem;
  const int64_t columns = gates_of(p.cell) * p.H;
  for (int64_t step = 4; way != kStepwise && !p.packed && step < p.T; ++step) {
    const int64_t first = (direction == 1 ? p.T - 1 - step : step) * p.B;
    for (int64_t i = 0; i < p.B * columns; ++i) {
      if (!shim::was_prefetched(&slots(first + i / columns, i % columns)))
        return "x of step " + std::to_string(step) + " is not prefetched";
    }
  }
  return "";
}

template <class T>
Problem problem_of(const Drawn& d, bool training) {
  Problem p = d.problem;
  p.training = training;
  p.dtypes = all_of(sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64);
  return p;
}

const int64_t* offsets_of(const Drawn& d) { return d.offsets.empty() ? nullptr : d.offsets.data(); }

// Tensors of one direction for forward: what it reads, and nan where it is to write.
template <class T>
ForwardDirection forward_tensors(const Drawn& d, const Problem& p, int direction, Buffer<T>& y,
                                 Tensors<T>& a) {
  const Recurrence& r = d.direction[direction];
  const int64_t H = p.H, B = p.B, N = p.rows().total(), G = gates_of(p.cell);
  const bool has_c = spec(p.cell).has_c;
  a.slots = filled<T>(d, widened(r.x, G, slots_of(p.cell, p.training), H), N);
  a.w_hh = filled<T>(d, r.w_hh, G * H);
  a.b_hh = filled<T>(d, r.b_hh, 1);
  a.h0 = filled<T>(d, r.h0, B);
  a.c0 = filled<T>(d, r.c0, B);
  a.h_n = Buffer<T>(B, H, d.skip);
  if (has_c) a.c_n = Buffer<T>(B, H, d.skip);
  if (has_c && (p.training || d.wants_c)) a.c = Buffer<T>(N, H, d.ldc, d.skip);
  a.y = y.data() + direction * H;
  return {a.slots.data(), a.w_hh.data(), a.b_hh.data(), a.h0.data(), a.c0.data(), a.y,
          a.c.data(),     a.h_n.data(),  a.c_n.data()};
}

// By persistent kernels, in one launch or in two.
int launch_forward(const Drawn& d, int way, Forward params, std::string& wrong) {
  const Problem& p = params.problem;
  const Plan plan = way == kPlanned ? planned(Pass::kForward, p, d.directions, wrong)
                                    : plan_of(way, Pass::kForward, p);
  if (!wrong.empty()) return 0;
  if (d.cut > 0) {  // the states pass from the one launch to the other
    params.end = d.cut;
    if (const int error = forward(params, plan, nullptr)) return error;
    params.begin = d.cut, params.end = p.T;
    for (ForwardDirection& to : params.direction) to.h0 = to.h_n, to.c0 = to.c_n;
  }
  return forward(params, plan, nullptr);
}

template <class T>
void compare_forward(const Recurrence& r, const Problem& p, Tensors<T>& a, std::string& wrong) {
  const bool has_c = spec(p.cell).has_c;
  note(wrong, a.h_n.difference("h_n", r.h_n));
  if (has_c) note(wrong, a.c_n.difference("c_n", r.c_n));
  if (a.c.data()) note(wrong, a.c.difference("c", r.c));
  if (!p.training) {
    note(wrong, a.slots.difference("slots, not training,", r.x));
  } else if (spec(p.cell).keeps_slots) {
    note(wrong, a.slots.difference("slots", r.slots));
  } else {
    note(wrong, a.slots.untouched_around("slots"));
  }
}

template <class T>
std::string check_forward(const Drawn& d, int way, bool training) {
  const Problem p = problem_of<T>(d, training);
  const int64_t N = p.rows().total();
  Buffer<T> y = shared_rows<T>(d, d.ldy);
  Tensors<T> tensors[2];
  Forward params{p, d.directions, offsets_of(d), 0, p.T, d.ldy, d.ldc, {}};
  for (int i = 0; i < d.directions; ++i)
    params.direction[i] = forward_tensors(d, p, i, y, tensors[i]);
  std::string wrong;
  int error = 0;
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < d.directions; ++i)
      shim::allow_prefetch(tensors[i].slots.data(), N * tensors[i].slots.columns());
    if (way != kStepwise) error = launch_forward(d, way, params, wrong);
  }
  for (int i = 0; way == kStepwise && i < d.directions; ++i)
    error |= stepwise_forward(p, i == 1, tensors[i], d.ldy);
  if (error) note(wrong, error_string(error));

  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < d.directions; ++i)
      note(wrong, check_prefetched(d, way, i, tensors[i].slots));
    shim::forget_prefetch();
  }
  note(wrong, y.difference("y", side_by_side(d, &Recurrence::y)));
  for (int i = 0; i < d.directions; ++i) compare_forward(d.direction[i], p, tensors[i], wrong);
  return wrong;
}

template <class T>
BackwardDirection backward_tensors(const Drawn& d, const Problem& p, int direction, Buffer<T>& y,
                                   Buffer<T>& dy, Tensors<T>& a) {
  const Recurrence& r = d.direction[direction];
  const int64_t H = p.H, B = p.B, N = p.rows().total();
  put_direction(y, r.y, H, direction);
  put_direction(dy, r.dy, H, direction);
  if (spec(p.cell).keeps_slots) a.slots = filled<T>(d, r.slots, N);
  if (spec(p.cell).has_c) a.c = filled<T>(d, r.c, N);
  a.w_hh = filled<T>(d, r.w_hh, gates_of(p.cell) * H);
  a.h0 = filled<T>(d, r.h0, B);
  a.c0 = filled<T>(d, r.c0, B);
  if (!r.dc.empty()) a.dc = Buffer<T>(N, H, d.lddc, d.skip).put(r.dc);
  a.dh_n = filled<T>(d, r.dh_n, B);
  a.dc_n = filled<T>(d, r.dc_n, B);
  a.dslots = Buffer<T>(N, slots_of(p.cell, true) * H, d.skip);
  if (d.wants_dh0) a.dh0 = Buffer<T>(B, H, d.skip);
  if (d.wants_dc0 && spec(p.cell).has_c) a.dc0 = Buffer<T>(B, H, d.skip);
  a.y = y.data() + direction * H;
  a.dy = dy.data() ? dy.data() + direction * H : nullptr;
  return {a.slots.data(), a.c.data(),  a.w_hh.data(), a.h0.data(),   a.c0.data(),     a.y,
          a.dy,           a.dc.data(), a.dh_n.data(), a.dc_n.data(), a.dslots.data(), a.dh0.data(),
          a.dc0.data()};
}

int launch_backward(const Drawn& d, int way, const Backward& whole, std::string& wrong) {
  const Problem& p = whole.problem;
  const Plan plan = way == kPlanned ? planned(Pass::kBackward, p, d.directions, wrong)
                                    : plan_of(way, Pass::kBackward, p);
  if (!wrong.empty()) return 0;
  if (d.cut == 0) return backward(whole, plan, nullptr);
  Backward first = whole, second = whole;
  first.end = second.begin = d.cut;
  Buffer<float> dh[2], dc[2];
  for (int i = 0; i < d.directions; ++i) {
    dh[i] = Buffer<float>(p.B, p.H, d.skip), dc[i] = Buffer<float>(p.B, p.H, d.skip);
    first.direction[i].dh0 = dh[i].data();
    second.direction[i].dh_n = dh[i].data();
    if (!spec(p.cell).has_c) continue;
    first.direction[i].dc0 = dc[i].data();
    second.direction[i].dc_n = dc[i].data();
  }
  if (const int error = backward(first, plan, nullptr)) return error;
  return backward(second, plan, nullptr);
}

template <class T>
std::string check_backward(const Drawn& d, int way) {
  const Problem p = problem_of<T>(d, true);
  Buffer<T> y = shared_rows<T>(d, d.ldy), dy;
  if (!d.direction[0].dy.empty()) dy = shared_rows<T>(d, d.lddy);
  Tensors<T> tensors[2];
  Backward params{p, d.directions, offsets_of(d), 0, p.T, d.ldy, d.lddy, d.lddc, {}};
  for (int i = 0; i < d.directions; ++i)
    params.direction[i] = backward_tensors(d, p, i, y, dy, tensors[i]);
  std::string wrong;
  int error = 0;
  if constexpr (sizeof(T) == 4) {
    if (way != kStepwise) error = launch_backward(d, way, params, wrong);
  }
  for (int i = 0; way == kStepwise && i < d.directions; ++i)
    error |= stepwise_backward(p, i == 1, tensors[i], d.ldy, d.lddy);
  if (error) note(wrong, error_string(error));

  for (int i = 0; i < d.directions; ++i) {
    const Recurrence& r = d.direction[i];
    Tensors<T>& a = tensors[i];
    note(wrong, a.dslots.difference("dslots", r.dslots));
    if (a.dh0.data()) note(wrong, a.dh0.difference("dh0", r.dh0));
    if (a.dc0.data()) note(wrong, a.dc0.difference("dc0", r.dc0));
  }
  return wrong;
}

// h that each row was computed from.
template <class T>
std::string check_previous_h(const Drawn& d, bool reverse) {
  Problem p = d.problem;
  p.reverse = reverse;
  p.dtypes = all_of(sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64);
  const Recurrence& r = d.direction[0];
  const int64_t H = p.H, N = p.rows().total();
  Buffer<T> y(N, H, d.ldy, d.skip), h0 = filled<T>(d, r.h0, p.B), h(N, H, d.skip);
  y.put(r.y);
  const PreviousH params{p, p.offsets, h0.data(), y.data(), d.ldy, h.data()};
  if (const int error = previous_h(params, nullptr)) return error_string(error);
  Doubles want(size_t(N * H));
  for (const Walk& step : walk(p, reverse)) {
    for (int64_t i = 0; i < step.rows * H; ++i) {
      const bool carried = i / H < step.rows_before;
      want[size_t(step.row * H + i)] = carried ? r.y[size_t(step.row_before * H + i)] : at(r.h0, i);
    }
  }
  return h.difference("previous h", want);
}

struct Run {
  std::string name;
  int way;
  Cell cell;
  int64_t T, B, H;
};

int check(const Run& run, unsigned seed) {
  const Drawn d = draw(run.cell, run.T, run.B, run.H, seed);
  std::vector<std::string> wrongs;
  for (const bool training : {true, false})
    wrongs.push_back(check_forward<float>(d, run.way, training));
  wrongs.push_back(check_backward<float>(d, run.way));
  if (run.way == kStepwise) {
    for (const bool training : {true, false})
      wrongs.push_back(check_forward<double>(d, run.way, training));
    wrongs.push_back(check_backward<double>(d, run.way));
    for (const bool reverse : {false, true}) {
      wrongs.push_back(check_previous_h<float>(d, reverse));
      wrongs.push_back(check_previous_h<double>(d, reverse));
    }
  }
  int failures = 0;
  for (const std::string& wrong : wrongs) {
    if (wrong.empty()) continue;
    std::printf("%s: %s: %s\n", run.name.c_str(), d.name.c_str(), wrong.c_str());
    ++failures;
  }
  return failures;
}

// Problems for a row of the table: its whole width and less, batches around its rows.
void add_tile(int tile, std::vector<Run>& runs) {
  const Tile& t = kTiles[tile];
  const bool rnn = t.cell == Cell::kRnnTanh;
  const std::string name = std::string(spec(t.cell).name) + " row " + std::to_string(tile) + " (" +
                           std::to_string(t.hidden) + ", " + std::to_string(t.cluster) + ", " +
                           std::to_string(t.rows) + ")";
  constexpr int64_t kOdd[] = {1, 37, 100, 150, 200, 333};
  int64_t odd = 1;
  for (const int64_t H : kOdd) odd = H < t.hidden ? H : odd;
  const Cell other = rnn ? Cell::kRnnRelu : t.cell;
  runs.push_back({name, tile, t.cell, 5, t.rows + 1, t.hidden});
  runs.push_back({name, tile, other, 4, t.rows, odd});
  runs.push_back({name, tile, other, 1, 2 * t.rows + 1, t.hidden - 3});
  runs.push_back({name, tile, t.cell, 2, 1, 1 + t.hidden / 2});
}

bool lists(const std::string& list, int tile) {
  return ("," + list + ",").find("," + std::to_string(tile) + ",") != std::string::npos;
}

std::vector<Run> runs_for(const std::string& what) {
  const bool all = what == "all";
  std::vector<Run> runs;
  for (int tile = 0; tile < kTileCount; ++tile) {
    const std::string mode = spec(kTiles[tile].cell).name, name = mode.substr(0, mode.find('_'));
    if (all || what == name || lists(what, tile)) add_tile(tile, runs);
  }
  for (int index = 0; index < kCellCount; ++index) {
    const Cell cell = Cell(index);
    if (all || what == "stepwise") {
      for (const Run& run : {Run{"", 0, cell, 1, 1, 1}, Run{"", 0, cell, 6, 5, 37},
                             Run{"", 0, cell, 3, 70, 100}, Run{"", 0, cell, 2, 3, 300}})
        runs.push_back({"stepwise", kStepwise, cell, run.T, run.B, run.H});
    }
    if (all || what == "planned") {
      for (const int64_t H : {1, 100, 150, 256})
        runs.push_back({"planned", kPlanned, cell, 2, 3, H});
    }
    // More steps than 16 bits count.
    if (what == "long" && cell == Cell::kGru) runs.push_back({"long", kPlanned, cell, 66000, 1, 2});
  }
  return runs;
}

}  // namespace
}  // namespace fusedrnn::cuda

int main(int argc, char** argv) {
  using namespace fusedrnn;
  const auto number = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  const std::string what = argc > 1 ? argv[1] : "all", order = argc > 2 ? argv[2] : "in-order";
  const unsigned seed = unsigned(number(3, 0));
  const int every = number(4, 1), which = number(5, 0);
  shim::Order orders = shim::Order::kInOrder;
  if (order == "random") orders = shim::Order::kRandom;
  if (order == "starving") orders = shim::Order::kStarving;
  shim::set_schedule({orders, seed});
  shim::set_shuffle_orders(argc <= 6);

  const std::vector<cuda::Run> runs = cuda::runs_for(what);
  int problems = 0, failures = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (int(i % size_t(every)) != which) continue;
    ++problems;
    failures += cuda::check(runs[i], unsigned(i) * 1000 + seed);
  }
  std::printf("%d problems, %d failures\n", problems, failures);
  return failures != 0 || problems == 0;
}
