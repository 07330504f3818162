#include "adder/nn/linear.h"

#include <torch/torch.h>

#include "adder/ops/small_linear.h"

namespace adder::nn {
namespace {

// A product of its own for each sequence, from rows that begin at a multiple of 64 bytes as those of a lone sequence
// do: BLAS may sum in another order for another number or alignment of rows.
torch::Tensor linear_of_each(const torch::Tensor& x, const torch::Tensor& weight,
                             const std::optional<torch::Tensor>& bias, const torch::Tensor& cu_seqlens) {
  const torch::Tensor offsets = cu_seqlens.contiguous();
  const auto* begins = offsets.const_data_ptr<int64_t>();
  std::vector<torch::Tensor> parts;
  for (int64_t i = 0; i + 1 < offsets.size(0); ++i) {
    torch::Tensor rows = x[0].narrow(0, begins[i], begins[i + 1] - begins[i]).contiguous();
    if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 64 != 0) rows = rows.clone();
    parts.push_back(ops::linear(rows, weight, bias));
  }
  return torch::cat(parts, 0).unsqueeze(0);
}

}  // namespace

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     const SequenceInfo& sequence) {
  const std::optional<torch::Tensor> b = bias.defined() ? std::optional(bias.to(x.scalar_type())) : std::nullopt;
  const torch::Tensor w = weight.to(x.scalar_type());
  if (sequence.independent && !torch::GradMode::is_enabled() && x.is_cpu()) {
    if (sequence.cu_seqlens && x.size(1) > 0) return linear_of_each(x, w, b, *sequence.cu_seqlens);
    if (x.dim() == 2 || x.size(1) == 1) return ops::small_linear(x, w, b);
  }
  return ops::linear(x, w, b);
}

namespace {

// x W^T as two products with half of W each, whose gradients come in two halves as well: they are never put together.
struct LinearHalves : torch::autograd::Function<LinearHalves> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                                                const torch::Tensor& weight) {
    context->save_for_backward({x, weight});
    const std::vector<torch::Tensor> halves = weight.chunk(2);
    return {at::linear(x, halves[0]), at::linear(x, halves[1])};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const torch::Tensor rows = saved[0].flatten(0, -2), &weight = saved[1];
    const torch::Tensor first = grads[0].flatten(0, -2), second = grads[1].flatten(0, -2);
    if (torch::GradMode::is_enabled()) {  // to be differentiated again
      const torch::Tensor both = torch::cat({first, second}, 1);
      return {at::mm(both, weight).reshape(saved[0].sizes()), at::mm(both.t(), rows)};
    }
    const std::vector<torch::Tensor> halves = weight.chunk(2);
    torch::Tensor dx, dweight;
    if (context->needs_input_grad(0)) dx = at::mm(first, halves[0]).addmm_(second, halves[1]).reshape(saved[0].sizes());
    if (context->needs_input_grad(1)) {
      dweight = torch::empty_like(weight);
      std::vector<torch::Tensor> parts = dweight.chunk(2);
      at::mm_out(parts[0], first.t(), rows);
      at::mm_out(parts[1], second.t(), rows);
    }
    return {dx, dweight};
  }
};

// x and x W^T as one step of the graph: the gradient of x that comes from elsewhere is what the product's is added to,
// as part of the product.
struct LinearBeside : torch::autograd::Function<LinearBeside> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                                                const torch::Tensor& weight) {
    context->save_for_backward({x, weight});
    context->set_materialize_grads(false);
    return {x.view_as(x), at::linear(x, weight)};
  }

  // By reference: a copy of the list would hold its tensors too.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], &weight = saved[1], &beside = grads[0];
    if (!grads[1].defined()) return {beside, torch::Tensor()};
    const torch::Tensor dy = grads[1].flatten(0, -2);
    torch::Tensor dx, dweight;
    if (context->needs_input_grad(1)) dweight = at::mm(dy.t(), x.flatten(0, -2));
    if (!context->needs_input_grad(0)) return {dx, dweight};
    if (!beside.defined()) return {at::mm(dy, weight).reshape(x.sizes()), dweight};
    const bool ours = beside.use_count() == 1 && beside.storage().use_count() == 1 && beside.is_contiguous() &&
                      !torch::GradMode::is_enabled();
    torch::Tensor rows = beside.flatten(0, -2);
    dx = ours ? rows.addmm_(dy, weight) : at::addmm(rows, dy, weight);
    return {dx.reshape(x.sizes()), dweight};
  }
};

}  // namespace

std::pair<torch::Tensor, torch::Tensor> linear_beside(const torch::Tensor& x, const torch::Tensor& weight,
                                                      const SequenceInfo& sequence) {
  if (!torch::GradMode::is_enabled()) return {x, linear(x, weight, {}, sequence)};
  const torch::autograd::variable_list both = LinearBeside::apply(x, weight.to(x.scalar_type()));
  return {both[0], both[1]};
}

std::pair<torch::Tensor, torch::Tensor> linear_halves(const torch::Tensor& x, const torch::Tensor& weight,
                                                      const torch::Tensor& bias, const SequenceInfo& sequence) {
  if (torch::GradMode::is_enabled() && !bias.defined()) {
    const torch::autograd::variable_list halves = LinearHalves::apply(x, weight.to(x.scalar_type()));
    return {halves[0], halves[1]};
  }
  if (!sequence.independent && !bias.defined()) {  // the same products without gradient, and with it the same bits
    const std::vector<torch::Tensor> halves = weight.to(x.scalar_type()).chunk(2);
    return {ops::linear(x, halves[0], {}), ops::linear(x, halves[1], {})};
  }
  const std::vector<torch::Tensor> halves = linear(x, weight, bias, sequence).chunk(2, -1);
  return {halves[0], halves[1]};
}

}  // namespace adder::nn
