#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/kernels/softmax_rows_cuda.h"
#include "adder/ops/checks.h"
#include "adder/ops/cuda_call.h"
#include "adder/ops/linear_cross_entropy_schema.h"
#include "adder/ops/views.h"

namespace adder::ops {
namespace {

// Logits that exist at a time.
constexpr int64_t kBlockBytes = int64_t{1} << 29;

// sum (V, D) += or = dlogits^T x, in sum's type.
void add_weight_gradient(const at::Tensor& dlogits, const at::Tensor& x, bool first, at::Tensor sum) {
  const bool same = sum.scalar_type() == x.scalar_type();
  if (first)
    same ? at::mm_out(sum, dlogits.t(), x) : at::mm_out(sum, dlogits.t(), x, sum.scalar_type());
  else
    same ? sum.addmm_(dlogits.t(), x) : at::addmm_out(sum, sum, dlogits.t(), x, sum.scalar_type());
}

// Nothing here waits for the device: how many targets count is known there alone, and a target outside the vocabulary
// gives a loss that is NaN.
LinearCrossEntropyResult cuda_forward(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad) {
  check_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_NAMES);
  const int64_t rows = x.size(0), real_vocab = vocab == -1 ? weight.size(0) : vocab;
  const at::TensorOptions real = x.options().dtype(accumulator_type(x.scalar_type()));
  const at::Tensor targets = target.contiguous();
  const at::Tensor real_weight = weight.narrow(0, 0, real_vocab).to(x.scalar_type());
  const at::Tensor loss = at::empty({}, real), row_losses = at::empty({rows}, real), scale = at::empty({}, real);
  const at::Tensor predictions = at::empty({rows}, target.options());
  const at::Tensor dx = need_grad ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  at::Tensor dweight = at::empty({0}, real);
  if (need_grad) {
    dweight = at::empty(weight.sizes(), real);
    dweight.narrow(0, rows == 0 ? 0 : real_vocab, rows == 0 ? weight.size(0) : weight.size(0) - real_vocab).zero_();
  }
  const int64_t most = std::max<int64_t>(16, kBlockBytes / (real_vocab * static_cast<int64_t>(x.element_size())));
  const int64_t blocks = (rows + most - 1) / most, block = blocks == 0 ? 0 : (rows + blocks - 1) / blocks;
  const at::Tensor buffer = at::empty({block, real_vocab}, x.options());
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using R = kernels::Accumulator<T>;
    kernels::cuda::target_scale(targets.const_data_ptr<int64_t>(), rows, ignore_index, numbers<R>(scale),
                                current_stream());
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t size = std::min(block, rows - first);
      at::Tensor logits = buffer.narrow(0, 0, size);
      const at::Tensor x_block = x.narrow(0, first, size);
      at::mm_out(logits, x_block, real_weight.t());
      kernels::SoftmaxRows<T> p;
      p.rows = size;
      p.vocab = real_vocab;
      p.logits = numbers<T>(logits);
      p.targets = targets.const_data_ptr<int64_t>() + first;
      p.ignore_index = ignore_index;
      p.write_gradient = need_grad;
      p.scale_there = numbers<const R>(scale);
      p.losses = numbers<R>(row_losses) + first;
      p.predictions = predictions.mutable_data_ptr<int64_t>() + first;
      kernels::cuda::softmax_rows(p, current_stream());
      if (!need_grad) continue;
      at::Tensor dx_block = dx.narrow(0, first, size);
      at::mm_out(dx_block, logits, real_weight);
      add_weight_gradient(logits, x_block, first == 0, dweight.narrow(0, 0, real_vocab));
    }
    kernels::cuda::mean_loss(numbers<const R>(row_losses), rows, numbers<const R>(scale), numbers<R>(loss),
                             current_stream());
  });
  return {loss, row_losses, predictions, dx, dweight};
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("_linear_cross_entropy_fwd", ADDER_CUDA_FN(cuda_forward));
}

}  // namespace
}  // namespace adder::ops
