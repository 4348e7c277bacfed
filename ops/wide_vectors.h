// For functions whose loops the compiler vectorises: compiled once more for wider vectors, chosen when the program
// starts. The bits are the same, since every step is rounded by itself (-ffp-contract=off). Where a loop needs more
// than the compiler finds, or runs in the main merge, it is a kernel (ops/kernels.h).
#pragma once

// Not with the sanitizers, which are not ready yet when the choice is made.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define BRAID_WIDE_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BRAID_WIDE_VECTORS
#endif
