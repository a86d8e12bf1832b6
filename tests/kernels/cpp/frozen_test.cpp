// Frozen files by way of fusedrnn.h, under the sanitizers: two threads step a stream of their own
// each over one model, rows come and go, states move to another stream, and what is refused is.
// The program is given where to write the outputs [kSteps, kRows, P] of all files, and the files.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "frozen/fusedrnn.h"

namespace {

constexpr int64_t kSteps = 20, kRows = 5;
int failures = 0;

void expect(bool holds, const char* path, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s: %s: %s\n", path, what, fusedrnn_error());
  ++failures;
}

using Floats = std::vector<float>;
using Stream = std::unique_ptr<fusedrnn_stream, decltype(&fusedrnn_stream_free)>;

struct Model {
  const char* path;
  fusedrnn_model* model;
  int64_t inputs, outputs;

  Stream stream(int64_t rows) const {
    return {fusedrnn_stream_new(model, rows), fusedrnn_stream_free};
  }
  bool has_c() const { return std::string(fusedrnn_mode(model)) == "LSTM"; }
};

// As exact as it is read elsewhere.
Floats input_of(const Model& m) {
  Floats x(size_t(kSteps * kRows * m.inputs));
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 37 % 101) - 50) / 64;
  return x;
}

Floats by_steps(const Model& m, const Floats& x) {
  Floats y(size_t(kSteps * kRows * m.outputs));
  const Stream stream = m.stream(kRows);
  for (int64_t t = 0; t < kSteps; ++t) {
    const int status = fusedrnn_step(stream.get(), &x[size_t(t * kRows * m.inputs)],
                                     &y[size_t(t * kRows * m.outputs)]);
    if (status != 0) return {};
  }
  return y;
}

void in_threads(const Model& m, const Floats& x, const Floats& y) {
  Floats one, two;
  std::thread other([&] { two = by_steps(m, x); });
  one = by_steps(m, x);
  other.join();
  expect(one == y && two == y, m.path, "steps in two threads");
}

// The states of a stream after half of the steps, taken on by another one; and rows that come and
// go meanwhile.
void states_and_rows(const Model& m, const Floats& x, const Floats& y) {
  const int64_t half = kSteps / 2;
  const Stream first = m.stream(kRows), second = m.stream(kRows - 1);
  Floats found(y.size());
  expect(fusedrnn_run(first.get(), x.data(), found.data(), half) == 0, m.path, "run");
  const size_t states = size_t(fusedrnn_num_layers(m.model) * kRows);
  Floats h(states * size_t(m.outputs));
  Floats c(m.has_c() ? states * size_t(fusedrnn_hidden_size(m.model)) : 0);
  float* const of_c = m.has_c() ? c.data() : nullptr;
  expect(fusedrnn_get_state(first.get(), h.data(), of_c) == 0, m.path, "get_state");
  expect(fusedrnn_join(second.get(), 2) == 0, m.path, "join");
  expect(fusedrnn_leave(second.get(), 0) == 0, m.path, "leave");
  expect(fusedrnn_rows(second.get()) == kRows, m.path, "rows");
  expect(fusedrnn_set_state(second.get(), h.data(), of_c) == 0, m.path, "set_state");
  const int status = fusedrnn_run(second.get(), &x[size_t(half * kRows * m.inputs)],
                                  &found[size_t(half * kRows * m.outputs)], kSteps - half);
  expect(status == 0 && found == y, m.path, "run from the states of another stream");
  expect(fusedrnn_reset(second.get(), -1) == 0, m.path, "reset");
  expect(fusedrnn_run(second.get(), x.data(), found.data(), kSteps) == 0 && found == y, m.path,
         "run after a reset");
}

void refusals(const Model& m, const Floats& x) {
  const Stream stream = m.stream(1);
  float h = 0;
  expect(fusedrnn_step(stream.get(), x.data(), nullptr) == -1, m.path, "a step without y");
  expect(fusedrnn_step(nullptr, x.data(), &h) == -1, m.path, "a step without a stream");
  expect(fusedrnn_run(stream.get(), x.data(), &h, INT64_MAX) == -1, m.path, "endless steps");
  expect(fusedrnn_reset(stream.get(), 1) == -1, m.path, "a row that there is not");
  expect(fusedrnn_leave(stream.get(), -1) == -1, m.path, "a row before the first");
  expect(fusedrnn_join(stream.get(), -1) == -1, m.path, "fewer than no rows");
  expect(fusedrnn_get_state(stream.get(), nullptr, nullptr) == -1, m.path, "states to nowhere");
  expect(std::strlen(fusedrnn_error()) > 0, m.path, "a refusal says why");
  expect(!fusedrnn_stream_new(nullptr, 1), m.path, "a stream of nothing");
  expect(!fusedrnn_stream_new(m.model, -1), m.path, "a stream of fewer than no rows");
}

void run(const char* path, std::FILE* to) {
  fusedrnn_model* const model = fusedrnn_load(path);
  expect(model, path, "load");
  if (!model) return;
  const Model m{path, model, fusedrnn_input_size(model), fusedrnn_output_size(model)};
  const Floats x = input_of(m);
  Floats y(size_t(kSteps * kRows * m.outputs));
  const Stream whole = m.stream(kRows);
  expect(fusedrnn_run(whole.get(), x.data(), y.data(), kSteps) == 0, path, "run");
  std::fwrite(y.data(), sizeof(float), y.size(), to);
  in_threads(m, x, y);
  states_and_rows(m, x, y);
  refusals(m, x);
  fusedrnn_free(model);
  expect(fusedrnn_step(whole.get(), x.data(), y.data()) == 0, path, "a step without its model");
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* const to = argc > 1 ? std::fopen(argv[1], "wb") : nullptr;
  if (!to) return 2;
  for (int i = 2; i < argc; ++i) run(argv[i], to);
  std::fclose(to);
  expect(!fusedrnn_load("/nowhere"), "/nowhere", "load");
  return failures != 0;
}
