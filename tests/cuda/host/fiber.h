// Stacks that one thread of the system switches between, and what the sanitizers must be told of a
// switch. Their runtimes are asked for weakly: one object serves every build, and must itself be
// built without -fsanitize=thread, or the scheduler's own accesses would count as the kernels'.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* token);
[[gnu::weak]] void __tsan_release(void* token);
[[gnu::weak]] void __tsan_read8(void* address);
[[gnu::weak]] void __tsan_write4(void* address);
[[gnu::weak]] void __tsan_write8(void* address);
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* address, size_t size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

namespace fusedrnn::shim {

inline void order_after(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}
inline void order_before(void* token) {
  if (__tsan_release) __tsan_release(token);
}

struct Stack {
#if defined(__x86_64__)
  void* top = nullptr;  // where its registers were pushed
#else
  ucontext_t context{};
#endif
  const void* bottom = nullptr;
  size_t size = 0;
  void* tsan = nullptr;
  void* asan = nullptr;
};

#if defined(__x86_64__)
// Keeps what a call must keep; the rest of the registers a caller does not count on.
[[gnu::naked, gnu::noinline]] inline void switch_registers(void** /*save*/, void* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
      "ret");
}
#endif

// Prepares a stack to run `entry`, which never returns, when first switched to.
inline void prepare(Stack& stack, unsigned char* memory, size_t size, void (*entry)()) {
  stack.bottom = memory;
  stack.size = size;
  stack.asan = nullptr;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(memory + size);
  *--top = nullptr;  // a return address, which keeps the stack as aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack.top = top;
#else
  getcontext(&stack.context);
  stack.context.uc_stack.ss_sp = memory;
  stack.context.uc_stack.ss_size = size;
  makecontext(&stack.context, entry, 0);
#endif
}

// `ends`: nothing will switch back.
inline void switch_stacks(Stack& from, Stack& to, bool ends) {
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.asan, to.bottom, to.size);
  }
  constexpr unsigned kOrdersNothing = 1;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan, kOrdersNothing);
#if defined(__x86_64__)
  switch_registers(&from.top, to.top);
#else
  swapcontext(&from.context, &to.context);
#endif
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
}

}  // namespace fusedrnn::shim
