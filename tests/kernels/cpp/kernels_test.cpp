// The CPU kernels against a scalar reference in double, without torch: a small program that
// sanitizers can watch whole.
//
// Every buffer is a heap block of exactly the size the contract states, so that AddressSanitizer
// sees one element too far. What a kernel has to fill holds nan before (workspace and reserve too),
// so that an element never written, or read before it was, shows in the results. Which optional
// tensors are there is drawn by chance, the same on every run.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cpu/halves.h"
#include "cpu/narrow.h"
#include "cpu/params.h"
#include "layer.h"

namespace {

using namespace fusedrnn;

struct Workspace {
  explicit Workspace(int64_t bytes) : data(::operator new(bytes, std::align_val_t(64))) {
    std::memset(data, 0xff, bytes);  // nan in either precision
  }
  ~Workspace() { ::operator delete(data, std::align_val_t(64)); }
  Workspace(const Workspace&) = delete;
  void* const data;
};

// A team may have fewer threads to give than it is asked for.
template <int kFewer>
void run_team(int wanted, void (*body)(void* context, int id, int n), void* context) {
  const int n = wanted - kFewer;
  std::vector<std::jthread> others;
  for (int id = 1; id < n; ++id) others.emplace_back(body, context, id, n);
  body(context, 0, n);
}
constexpr cpu::Team kTeams[] = {
    {run_team<0>, 1}, {run_team<0>, 2}, {run_team<0>, 3}, {run_team<1>, 3}};

struct Case {
  std::string name;
  Problem problem;
  std::vector<int64_t> offsets;
  std::array<bool, kNames> present;
  bool accumulate_dx;
  int64_t skip;                   // columns of y and dy that belong to another direction
  Tensors<double> begin, result;  // of the reference: before and after

  // Whether products may be of bfloat16, and these numbers are more than it holds.
  bool narrow() const { return problem.dtypes.multiplied == DType::kBFloat16 && !whole; }
  bool whole = false;
};

// Where the rows of a tensor of the kernels' lie: y and dy are the last columns of wider ones.
struct Rows {
  int64_t count, columns, skip;
  Rows(const Case& c, Name name) {
    const bool wide = name == kY || name == kDy;
    columns = wide ? c.problem.P : int64_t(c.begin[name].size());
    count = columns ? int64_t(c.begin[name].size()) / columns : 0;
    skip = wide ? c.skip : 0;
  }
  int64_t at(int64_t row, int64_t column) const { return row * (skip + columns) + skip + column; }
};

// Tensors for the kernels: what they are given in their precision, nan in what they make.
template <class T>
Tensors<T> tensors_for(const Case& c) {
  Tensors<T> a;
  for (int i = 0; i < kNames; ++i) {
    if (!c.present[i]) continue;
    const Rows rows(c, Name(i));
    a[i].assign(rows.count * (rows.skip + rows.columns), std::numeric_limits<T>::quiet_NaN());
    if (i >= kY && !(i == kDx && c.accumulate_dx)) continue;
    for (int64_t r = 0; r < rows.count; ++r) {
      std::copy_n(&c.begin[i][r * rows.columns], rows.columns, &a[i][rows.at(r, 0)]);
    }
  }
  return a;
}

template <class T>
std::string run(const Case& c, const cpu::Team& team, bool training, Tensors<T>& a) {
  Problem p = c.problem;
  p.training = training;
  const auto at = [&](Name name) { return a[name].empty() ? nullptr : a[name].data(); };
  const auto wide = [&](Name name) { return a[name].empty() ? nullptr : &a[name][c.skip]; };
  const int64_t ld = p.P + c.skip;
  std::vector<T> reserve;
  {
    const cpu::Plan plan = cpu::plan_forward(p, team.threads);
    const Workspace workspace(plan.workspace_bytes);
    reserve.assign(plan.reserve_size, std::numeric_limits<T>::quiet_NaN());
    plan.forward({.problem = p,
                  .x = at(kX),
                  .h0 = at(kH0),
                  .c0 = at(kC0),
                  .w_ih = at(kWIh),
                  .w_hh = at(kWHh),
                  .b_ih = at(kBIh),
                  .b_hh = at(kBHh),
                  .w_hr = at(kWHr),
                  .y = wide(kY),
                  .ldy = ld,
                  .h_n = at(kHN),
                  .c_n = at(kCN),
                  .reserve = training ? reserve.data() : nullptr,
                  .workspace = workspace.data},
                 plan, team);
  }
  const cpu::Plan plan = cpu::plan_backward(p, team.threads);
  if (training) {
    const Workspace workspace(plan.workspace_bytes);
    plan.backward({.problem = p,
                   .x = at(kX),
                   .h0 = at(kH0),
                   .c0 = at(kC0),
                   .w_ih = at(kWIh),
                   .w_hh = at(kWHh),
                   .w_hr = at(kWHr),
                   .y = wide(kY),
                   .ldy = ld,
                   .reserve = reserve.data(),
                   .dy = wide(kDy),
                   .lddy = ld,
                   .dh_n = at(kDhN),
                   .dc_n = at(kDcN),
                   .dx = at(kDx),
                   .accumulate_dx = c.accumulate_dx,
                   .dh0 = at(kDh0),
                   .dc0 = at(kDc0),
                   .dw_ih = at(kDwIh),
                   .dw_hh = at(kDwHh),
                   .db_ih = at(kDbIh),
                   .db_hh = at(kDbHh),
                   .dw_hr = at(kDwHr),
                   .workspace = workspace.data},
                  plan, team);
  }
  return std::string(cpu::name_of(plan.split)) + "/" + std::to_string(plan.threads);
}

// Says where a tensor first departs from the reference, or touches what is not its own.
template <class T>
std::string difference(const Case& c, Name name, const std::vector<T>& got) {
  const Doubles& want = c.result[name];
  double scale = 1;
  for (double x : want) scale = std::max(scale, std::abs(x));
  const double tolerance = (c.narrow() ? 0.03 : sizeof(T) == 4 ? 1e-5 : 1e-13) * scale;
  const Rows rows(c, name);
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t i = -rows.skip; i < rows.columns; ++i) {
      const double x = got[rows.at(r, i)], right = i < 0 ? 0 : want[r * rows.columns + i];
      if (i < 0 ? std::isnan(x) : std::abs(x - right) <= tolerance) continue;
      return std::string(kNameOf[name]) + "[" + std::to_string(r) + ", " + std::to_string(i) +
             "] is " + std::to_string(x) + ", not " + (i < 0 ? "untouched" : std::to_string(right));
    }
  }
  return "";
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  const size_t bytes = std::min(a.size(), b.size()) * sizeof(T);
  return bytes == 0 || !std::memcmp(a.data(), b.data(), bytes);
}

// Both halves of a team at once, each with a case of its own: `first` is what one thread made of
// it.
template <class T>
int check_halves(const Case& c, const Tensors<T>& first) {
  int failures = 0;
  // One of three threads is given to one half, two to the other.
  for (const cpu::Team& team :
       {cpu::Team{run_team<0>, 1}, cpu::Team{run_team<0>, 2}, cpu::Team{run_team<1>, 4}}) {
    Tensors<T> a[2] = {tensors_for<T>(c), tensors_for<T>(c)};
    cpu::in_halves(team, [&](const cpu::Team& half, int which) { run(c, half, true, a[which]); });
    for (const Tensors<T>& half : a) {
      for (int i = kY; i < kNames; ++i) {
        if (same_bits(first[i], half[i])) continue;
        std::printf("%s, half of %d threads: %s differs\n", c.name.c_str(), team.threads,
                    kNameOf[i]);
        ++failures;
      }
    }
  }
  return failures;
}

template <class T>
int check(const Case& c, std::set<std::string>& plans) {
  int failures = 0;
  Tensors<T> first;
  for (const cpu::Team& team : kTeams) {
    for (const bool training : {false, true}) {
      Tensors<T> a = tensors_for<T>(c);
      const std::string plan = run(c, team, training, a);
      plans.insert(plan);
      std::string wrong;
      for (int i = kY; i < (training ? kNames : kDx) && wrong.empty(); ++i) {
        if (c.present[i]) wrong = difference(c, Name(i), a[i]);
        if (wrong.empty() && !same_bits(first[i], a[i])) {
          wrong = std::string(kNameOf[i]) + " depends on the threads";
        }
      }
      if (training && &team == kTeams) first = a;
      if (wrong.empty()) continue;
      std::printf("%s %s: %s\n", c.name.c_str(), plan.c_str(), wrong.c_str());
      ++failures;
    }
  }
  // For one problem in four: no kernel runs that has not run above.
  if (c.problem.reverse && !c.problem.packed) failures += check_halves(c, first);
  return failures;
}

struct Kind {
  const char* name;
  Cell cell;
  bool projected;
};
constexpr Kind kKinds[] = {
    {"LSTM", Cell::kLstm, false},        {"LSTM projected", Cell::kLstm, true},
    {"GRU", Cell::kGru, false},          {"MGU", Cell::kMgu, false},
    {"RNN_TANH", Cell::kRnnTanh, false}, {"RNN_RELU", Cell::kRnnRelu, false}};

struct Shape {
  int64_t T, B, I, H, P;
};
constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 1},       {2, 1, 5, 3, 2},      {3, 2, 1, 16, 5},    {5, 5, 17, 17, 16},
    {4, 33, 3, 37, 17},    {1, 33, 100, 16, 3},  {2, 5, 20, 100, 33}, {5, 2, 37, 100, 67},
    {2, 300, 2, 17, 3},    // more rows than a chunk has: one step each
    {1, 1, 900, 700, 90},  // weights read in place, by threads that share units
    {70, 5, 3, 16, 5},     // two chunks
    {270, 1, 50, 37, 7},   {20, 2, 90, 100, 20},  // few rows, much work: threads share units
    {8, 5, 90, 100, 20},                          // even one gate is work for three threads
    {3, 3, 530, 17, 2},    {2, 2, 3, 150, 140},   // sums longer than a block of K
    {70, 5, 150, 37, 5},                          // two chunks of wide x
    {3, 7, 20, 270, 260},                         // weights read in place, but not going back
    {2, 4, 20, 260, 258},                         // going back too
    {2, 3, 620, 240, 20},                         // dx with weights packed by the chunk
    {60, 5, 515, 20, 4},                          // columns of x gathered for dW, two chunks
    {9, 100, 11, 17, 9},    // five chunks: threads that own rows go ahead of each other
    {5, 16, 66, 256, 254},  // rows for all threads, which share units all the same, going back too
    {2, 50, 66, 256, 254},  // going forward only; of wide weights each tile fetches a part ahead
};

// Steps of a case of whole numbers: after them the numbers of a relu are still below 256, which
// bfloat16 holds exactly.
constexpr int64_t kMostWholeSteps = 3;

Case draw(const Kind& kind, const Shape& s, bool packed, bool reverse, std::mt19937& random,
          bool whole = false) {
  Case c;
  c.whole = whole;
  Problem& p = c.problem;
  p = {};
  p.cell = kind.cell;
  p.dtypes = all_of(DType::kFloat32);
  p.T = s.T, p.B = s.B, p.I = s.I, p.H = s.H;
  p.P = kind.projected ? s.P : s.H;
  p.projected = kind.projected;
  p.reverse = reverse;
  c.name = std::string(kind.name) + " T" + std::to_string(s.T) + " B" + std::to_string(s.B) + " I" +
           std::to_string(s.I) + " H" + std::to_string(s.H) + " P" + std::to_string(p.P) +
           (packed ? " packed" : "") + (reverse ? " reverse" : "");
  if (packed) {
    c.offsets = {0};
    int64_t rows = p.B;
    for (int64_t t = 0; t < p.T; ++t) {
      c.offsets.push_back(c.offsets.back() + rows);
      if (random() % 2) rows -= random() % rows;
    }
    p.packed = true;
    p.offsets = c.offsets.data();
  }
  const auto chance = [&] { return random() % 4 != 0; };
  for (bool& present : c.present) present = chance();
  for (Name name : {kX, kWIh, kWHh, kWHr, kY, kHN, kCN}) c.present[name] = true;
  c.present[kBHh] = c.present[kBIh];
  for (Name name : {kDbIh, kDbHh}) c.present[name] &= c.present[kBIh];
  c.accumulate_dx = !chance();
  c.skip = chance() ? 0 : 3;

  const float bound = 1 / std::sqrt(float(p.H));
  for (int i = 0; i < kNames; ++i) {
    c.begin[i].assign(elements(p, Name(i)), 0);
    if (!c.present[i] || (i >= kY && !(i == kDx && c.accumulate_dx))) continue;
    const bool weight = i >= kWIh && i <= kWHr;
    std::uniform_real_distribution<float> uniform(weight ? -bound : -1.f, weight ? bound : 1.f);
    // Few elements of a row of weights are not 0.
    const auto number = [&]() -> double {
      if (!whole) return uniform(random);
      const bool zero = weight && random() % uint64_t(std::max(s.I, p.P)) >= 3;
      return zero ? 0 : double(random() % 3) - 1;
    };
    for (double& x : c.begin[i]) x = number();
  }
  c.result = c.begin;
  layer(p, c.result);
  return c;
}

bool has_narrow(const Problem& p) {
  return cpu::narrow_of(DType::kBFloat16, cpu::plan_forward(p, 1).lanes);
}
// A relu near 0 may be on the other side of it in bfloat16, with another gradient: its numbers are
// whole, and then all is exact.
int check_bfloat16(const Kind& kind, const Shape& shape, int way, Case c,
                   std::set<std::string>& plans) {
  if (kind.cell == Cell::kRnnRelu) {
    if (shape.T > kMostWholeSteps) return 0;
    std::mt19937 random(way);
    c = draw(kind, shape, way & 1, way & 2, random, true);
  }
  c.name += " in bfloat16";
  c.problem.dtypes = all_of(DType::kFloat32);
  c.problem.dtypes.multiplied = DType::kBFloat16;
  if (c.problem.packed) c.problem.offsets = c.offsets.data();
  return check<float>(c, plans);
}

}  // namespace

// An argument n runs each n-th problem only, where a machine is emulated or threads are watched; a
// second one each in one precision, by turns, or in bfloat16 alone.
int main(int argc, char** argv) {
  const int stride = argc > 1 ? std::atoi(argv[1]) : 1;
  const bool only_bfloat16 = argc > 2 && !std::strcmp(argv[2], "bfloat16"),
             by_turns = argc > 2 && !only_bfloat16;
  int problems = 0, failures = 0;
  for (const Kind& kind : kKinds) {
    std::set<std::string> plans;
    for (const Shape& shape : kShapes) {
      for (int way = 0; way < 4; ++way) {
        if (problems++ % stride) continue;
        std::mt19937 random(problems);
        Case c = draw(kind, shape, way & 1, way & 2, random);
        const bool odd = problems / stride % 2;
        if (!only_bfloat16 && (!by_turns || odd)) failures += check<float>(c, plans);
        if (has_narrow(c.problem)) failures += check_bfloat16(kind, shape, way, c, plans);
        c.problem.dtypes = all_of(DType::kFloat64);
        if (!only_bfloat16 && (!by_turns || !odd)) failures += check<double>(c, plans);
      }
    }
    for (const char* plan : {"none/1", "batch/2", "batch/3", "hidden/2", "hidden/3"}) {
      if (plans.count(plan) || only_bfloat16) continue;
      std::printf("%s: no problem is run as %s\n", kind.name, plan);
      ++failures;
    }
  }
  std::printf("%s: %d problems, %d failures\n", cpu::isa_name(), problems / stride, failures);
  return failures != 0;
}
