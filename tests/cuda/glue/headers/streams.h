// Streams and events of a GPU that is not there, made to show a wait that is missing. The main
// stream's work is done at once; a second stream's only when the main one waits for an event that
// was recorded after it, so that who forgets to wait reads what was there before. And each access
// to memory is held against earlier ones of other streams: two to the same bytes, one of them a
// write, must have an event between them. Shared by the stand-ins for headers in this folder.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace glue {

struct Access {
  const void* memory;
  int64_t bytes;
  bool writes;
};

// How much of each stream's work is known to be done.
using Clock = std::map<const void*, int64_t>;

struct Event {
  const void* stream = nullptr;
  Clock clock;
};

class Streams {
 public:
  static Streams& all() {
    static auto* const streams = new Streams;
    return *streams;
  }

  // nullptr is the main stream.
  void issue(const void* stream, const char* what, const std::vector<Access>& accesses,
             std::function<void()> work) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Stream& own = streams_[stream];
    const int64_t time = ++own.clock[stream];
    for (const Access& access : accesses) {
      if (access.memory && access.bytes > 0) check(stream, own.clock, what, access, time);
    }
    if (!stream) return work();
    own.queue.emplace_back(time, std::move(work));
  }

  void record(Event& event, const void* stream) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    event.stream = stream;
    event.clock = streams_[stream].clock;
  }

  void wait(const void* stream, const Event& event) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (waits_++ == forgotten_) return;
    if (!stream) run(streams_[event.stream], event.clock.at(event.stream));
    Clock& clock = streams_[stream].clock;
    for (const auto& [other, time] : event.clock) clock[other] = std::max(clock[other], time);
  }

  // Makes the n-th wait from here on none; no wait for -1. Returns how many there were since.
  int64_t forget(int64_t n) {
    const int64_t waits = waits_;
    waits_ = 0;
    forgotten_ = n;
    return waits;
  }

  // Whether the stream has waited for the main one, which makes it part of what that captures.
  bool is_forked(const void* stream) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return !stream || streams_[stream].clock.count(nullptr);
  }

  // Says what is still under way for all that the main stream knows, and forgets all about it.
  std::string settle() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    std::string said;
    Clock& main = streams_[nullptr].clock;
    for (auto& [id, stream] : streams_) {
      if (id && stream.clock[id] > main[id]) said = "the main stream did not wait for another";
      stream.queue.clear();
    }
    for (auto& [id, stream] : streams_) {
      main[id] = stream.clock[id];
      if (id) stream.clock.erase(nullptr);
    }
    accesses_.clear();
    return said;
  }

 private:
  struct Stream {
    Clock clock;
    std::deque<std::pair<int64_t, std::function<void()>>> queue;
  };
  struct Known : Access {
    const void* stream;
    int64_t time;
    std::string what;
  };

  static void run(Stream& stream, int64_t until) {
    while (!stream.queue.empty() && stream.queue.front().first <= until) {
      const auto work = std::move(stream.queue.front().second);
      stream.queue.pop_front();
      work();
    }
  }

  void check(const void* stream, Clock& clock, const char* what, const Access& access,
             int64_t time) {
    const auto begin = reinterpret_cast<uintptr_t>(access.memory);
    for (const Known& other : accesses_) {
      const auto at = reinterpret_cast<uintptr_t>(other.memory);
      const bool meet = begin < at + other.bytes && at < begin + access.bytes;
      if (!meet || other.stream == stream || !(access.writes || other.writes)) continue;
      if (clock[other.stream] >= other.time) continue;
      throw std::runtime_error(std::string(what) + " does not wait for " + other.what);
    }
    accesses_.push_back({access, stream, time, what});
    if (accesses_.size() > kMost) accesses_.pop_front();
  }

  static constexpr size_t kMost = 512;
  std::recursive_mutex mutex_;
  std::map<const void*, Stream> streams_;
  std::deque<Known> accesses_;
  int64_t waits_ = 0, forgotten_ = -1;
};

}  // namespace glue
