#pragma once

#include <ATen/FuncTorchTLS.h>
#include <torch/csrc/autograd/custom_function.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>

// What the Autograd registrations share.
namespace adder::ops {

// Hides torch.func's transforms from torch::autograd::Function::apply, which refuses them all: a C++ function has no
// rule for them. Ours need none, since what they call are operators, which the next transform takes over by itself.
class HiddenTransforms {
 public:
  HiddenTransforms() : state_(std::move(at::functorch::functorchTLSAccessor())) {}
  HiddenTransforms(const HiddenTransforms&) = delete;
  HiddenTransforms& operator=(const HiddenTransforms&) = delete;
  ~HiddenTransforms() { show(); }
  void show() {
    if (state_ != nullptr) at::functorch::functorchTLSAccessor() = std::move(state_);
  }

 private:
  std::unique_ptr<at::functorch::FuncTorchTLSBase> state_;
};

// Where a Function's forward calls operators: below autograd, the transforms in sight again, and what they record
// further out not switched off by apply, which switches it off for this function alone.
class BelowAutograd {
 public:
  explicit BelowAutograd(HiddenTransforms& transforms) { transforms.show(); }

 private:
  at::AutoGradMode record_{true};
  at::AutoDispatchBelowADInplaceOrView below_;
};

// The edges to those that require gradients, none where none are recorded.
torch::autograd::edge_list edges_of(std::initializer_list<std::optional<at::Tensor>> tensors);

// Makes the derivative of `results` with respect to what is behind the edges an error that names the operator: without
// it a second derivative (create_graph, nested transforms) would lack a part, silently.
void refuse_second_derivative(const char* op, torch::autograd::edge_list edges,
                              std::initializer_list<at::Tensor> results);

}  // namespace adder::ops
