#pragma once

#include <gtest/gtest.h>

#include "adder/kernels/targets.h"
#include "hwy/highway.h"

namespace adder::tests {

// Calls check() for each instruction set that the kernels are compiled for and this processor has.
template <typename Check>
void on_every_target(const Check& check) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    check();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace adder::tests
