#include "adder/ops/autograd.h"

#include <torch/csrc/autograd/functions/utils.h>

#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

using torch::autograd::edge_list;
using torch::autograd::variable_list;

struct NoSecondDerivative : torch::autograd::Node {
  NoSecondDerivative(const char* op, edge_list edges) : Node(std::move(edges)), op_(op) {}

  variable_list apply(variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, op_, ": has no second derivative; ", op_, "_composite has");
  }

 private:
  const char* op_;
};

}  // namespace

edge_list edges_of(std::initializer_list<std::optional<at::Tensor>> tensors) {
  edge_list edges;
  if (!at::GradMode::is_enabled()) return edges;
  for (const std::optional<at::Tensor>& t : tensors)
    if (present(t) && t->requires_grad()) edges.push_back(torch::autograd::impl::gradient_edge(*t));
  return edges;
}

void refuse_second_derivative(const char* op, edge_list edges, std::initializer_list<at::Tensor> results) {
  if (edges.empty()) return;
  const auto node = std::make_shared<NoSecondDerivative>(op, std::move(edges));
  for (const at::Tensor& result : results)
    if (result.defined()) torch::autograd::set_history(result, node);
}

}  // namespace adder::ops
