// Stands before torch's header of this name on the include path: the stream is being captured when
// the environment says so.
#pragma once

#include <cstdlib>

namespace c10::cuda {

enum class CaptureStatus : int { None, Active };

inline CaptureStatus currentStreamCaptureStatusMayInitCtx() {
  return std::getenv("FUSEDRNN_HOST_CAPTURES") ? CaptureStatus::Active : CaptureStatus::None;
}

}  // namespace c10::cuda
