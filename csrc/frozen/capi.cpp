// The C interface of frozen layers: fusedrnn.h says what each function does. No exception leaves
// this file.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "frozen/file.h"
#include "frozen/fusedrnn.h"
#include "frozen/stream.h"

using fusedrnn::DType;
using fusedrnn::spec;
namespace frozen = fusedrnn::frozen;

struct fusedrnn_model {
  std::shared_ptr<const frozen::Stack> stack;
  std::string dtype;
};

struct fusedrnn_stream {
  frozen::Stream stream;
};

namespace {

// Beyond this many numbers in a call, sizes in bytes could overflow.
constexpr int64_t kMostNumbers = int64_t(1) << 44;

// Of one thread. An array, as a string would have to be destroyed when the thread ends, by a
// library that may have been unloaded by then.
thread_local char message[512];

void refused(const char* what) {
  constexpr char kOurs[] = "fusedrnn: ";
  const bool named = std::string_view(what).starts_with(kOurs);
  std::snprintf(message, sizeof message, "%s%s", named ? "" : kOurs, what);
}

// What f returns, or `otherwise` where it throws.
template <class F, class Result>
Result guarded(Result otherwise, const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    refused("there is not enough memory");
  } catch (const std::exception& error) {
    refused(error.what());
  } catch (...) {
    refused("an unknown error");
  }
  return otherwise;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// The same for functions that return 0 or -1.
template <class Handle, class F>
int called(Handle* stream, const F& f) {
  return guarded(-1, [&] {
    require(stream, "the stream is NULL: fusedrnn_stream_new was refused, or it was never called");
    f(stream->stream);
    return 0;
  });
}

void run(frozen::Stream& stream, const float* x, float* y, int64_t steps) {
  const frozen::Shape& s = stream.stack().shape();
  require(steps >= 0, "steps must be 0 or more");
  if (steps == 0 || stream.rows() == 0) return;
  require(x && y, "x and y must not be NULL");
  const int64_t widest = std::max(s.I, s.rows());
  require(steps <= kMostNumbers / widest / stream.rows(), "no memory holds so many steps");
  stream.run(x, y, steps);
}

}  // namespace

extern "C" {

const char* fusedrnn_version(void) { return FUSEDRNN_VERSION; }

const char* fusedrnn_error(void) { return message; }

fusedrnn_model* fusedrnn_load(const char* path) {
  return guarded(static_cast<fusedrnn_model*>(nullptr), [&] {
    require(path, "the path is NULL");
    const frozen::File file = frozen::read(path);
    const std::string where = std::string(path) + " holds a ";
    if (file.shape.D != 1) {
      throw std::invalid_argument(where +
                                  "bidirectional layer, which cannot be streamed: it begins at the "
                                  "end of a sequence");
    }
    if (file.shape.computed == DType::kFloat64) {
      throw std::invalid_argument(where +
                                  "float64 layer: call float() on the layer, freeze and save it "
                                  "again");
    }
    auto stack = std::make_shared<const frozen::Stack>(file.shape, file.weights);
    return new fusedrnn_model{std::move(stack), file.dtype};
  });
}

void fusedrnn_free(fusedrnn_model* model) { delete model; }

int64_t fusedrnn_input_size(const fusedrnn_model* model) { return model->stack->shape().I; }
int64_t fusedrnn_output_size(const fusedrnn_model* model) { return model->stack->shape().P; }
int64_t fusedrnn_hidden_size(const fusedrnn_model* model) { return model->stack->shape().H; }
int64_t fusedrnn_num_layers(const fusedrnn_model* model) { return model->stack->shape().L; }
const char* fusedrnn_mode(const fusedrnn_model* model) {
  return spec(model->stack->shape().cell).name;
}
const char* fusedrnn_dtype(const fusedrnn_model* model) { return model->dtype.c_str(); }
int64_t fusedrnn_bytes(const fusedrnn_model* model) { return model->stack->bytes(); }

fusedrnn_stream* fusedrnn_stream_new(const fusedrnn_model* model, int64_t rows) {
  return guarded(static_cast<fusedrnn_stream*>(nullptr), [&] {
    require(model, "the model is NULL: fusedrnn_load was refused, or it was never called");
    return new fusedrnn_stream{frozen::Stream(model->stack, rows)};
  });
}

void fusedrnn_stream_free(fusedrnn_stream* stream) { delete stream; }

int64_t fusedrnn_rows(const fusedrnn_stream* stream) { return stream->stream.rows(); }

int fusedrnn_step(fusedrnn_stream* stream, const float* x, float* y) {
  return called(stream, [&](frozen::Stream& s) { run(s, x, y, 1); });
}

int fusedrnn_run(fusedrnn_stream* stream, const float* x, float* y, int64_t steps) {
  return called(stream, [&](frozen::Stream& s) { run(s, x, y, steps); });
}

int fusedrnn_reset(fusedrnn_stream* stream, int64_t row) {
  return called(stream, [&](frozen::Stream& s) { s.reset(row); });
}

int fusedrnn_join(fusedrnn_stream* stream, int64_t count) {
  return called(stream, [&](frozen::Stream& s) { s.join(count); });
}

int fusedrnn_leave(fusedrnn_stream* stream, int64_t row) {
  return called(stream, [&](frozen::Stream& s) { s.leave(row); });
}

int fusedrnn_get_state(const fusedrnn_stream* stream, float* h, float* c) {
  return called(stream, [&](const frozen::Stream& s) {
    const bool has_c = spec(s.stack().shape().cell).has_c;
    require(h || s.rows() == 0, "h must not be NULL");
    require(has_c ? c || s.rows() == 0 : !c, has_c ? "an LSTM has c too, and it must not be NULL"
                                                   : "this layer has no c, and it must be NULL");
    s.read_states(h, c);
  });
}

int fusedrnn_set_state(fusedrnn_stream* stream, const float* h, const float* c) {
  return called(stream, [&](frozen::Stream& s) {
    const bool has_c = spec(s.stack().shape().cell).has_c;
    require(h || s.rows() == 0, "h must not be NULL");
    require(has_c ? c || s.rows() == 0 : !c, has_c ? "an LSTM has c too, and it must not be NULL"
                                                   : "this layer has no c, and it must be NULL");
    s.write_states(h, c);
  });
}

}  // extern "C"
