#pragma once

// The instruction sets that each kernel is compiled for (Highway chooses at run time): the baseline, AVX2 and AVX-512.
// The ones in between bring these kernels nothing and cost compile time. To be included before any Highway header.
// Bits 4 to 6 are the AVX-512 variants (Zen 4, Sapphire Rapids, AVX10) of newer Highways; 1.0.3 has no names for them.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | (7LL << 4))
