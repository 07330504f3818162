#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <torch/library.h>

#include "adder/kernels/softmax_rows.h"
#include "adder/ops/checks.h"
#include "adder/ops/linear_cross_entropy_schema.h"
#include "adder/ops/views.h"

namespace adder::ops {
namespace {

// Logits that exist at a time.
constexpr int64_t kBlockBytes = int64_t{64} << 20;

// Rows whose logits exist at a time: equal blocks, since a product with few rows is slow.
int64_t block_rows(int64_t rows, int64_t row_bytes) {
  const int64_t most = std::max<int64_t>(16, kBlockBytes / row_bytes);
  const int64_t blocks = (rows + most - 1) / most;
  return blocks == 0 ? 0 : (rows + blocks - 1) / blocks;
}

// logits = x weight^T, a product for each part of the vocabulary: BLAS loses a sixth here with threads of its own,
// which share the copies it makes of x and weight.
void logits_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& logits) {
  constexpr int64_t kPart = 2048;
  const int64_t vocab = weight.size(0);
  const at::ThreadLocalState state;  // the caller's inference mode and the like
  at::parallel_for(0, (vocab + kPart - 1) / kPart, 1, [&](int64_t first, int64_t last) {
    const at::ThreadLocalStateGuard guard(state);
    for (int64_t begin = first * kPart; begin < std::min(vocab, last * kPart); begin += kPart) {
      const int64_t size = std::min(kPart, vocab - begin);
      at::Tensor part = logits.narrow(1, begin, size);
      at::mm_out(part, x, weight.narrow(0, begin, size).t());
    }
  });
}

// Checks the values and returns how many rows count.
int64_t counted_rows(const at::Tensor& target, int64_t ignore_index, int64_t vocab) {
  const int64_t* values = target.const_data_ptr<int64_t>();
  int64_t count = 0;
  for (int64_t row = 0; row < target.numel(); ++row) {
    if (values[row] == ignore_index) continue;
    TORCH_CHECK_VALUE(values[row] >= 0 && values[row] < vocab,
                      "linear_cross_entropy: target must lie in [0, vocab) = [0, ", vocab, ") or be ignore_index (",
                      ignore_index, "), got ", values[row], " in row ", row);
    ++count;
  }
  return count;
}

// loss = sum of the row losses / count, in row order.
template <typename R>
void mean_loss(const at::Tensor& row_losses, int64_t count, const at::Tensor& loss) {
  const R* values = row_losses.const_data_ptr<R>();
  double sum = 0;
  for (int64_t row = 0; row < row_losses.numel(); ++row) sum += static_cast<double>(values[row]);
  *loss.mutable_data_ptr<R>() = static_cast<R>(sum / static_cast<double>(std::max<int64_t>(count, 1)));
}

// sum (V, D) += or = dlogits^T x, in sum's type. There is no product of bfloat16 matrices with a float32 result.
void add_weight_gradient(const at::Tensor& dlogits, const at::Tensor& x, bool first, at::Tensor sum) {
  if (sum.scalar_type() == x.scalar_type()) {
    if (first)
      at::mm_out(sum, dlogits.t(), x);
    else
      sum.addmm_(dlogits.t(), x);
    return;
  }
  const at::Tensor product = at::mm(dlogits.t(), x);
  if (first)
    sum.copy_(product);
  else
    sum.add_(product);
}

LinearCrossEntropyResult cpu_forward(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad) {
  check_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_NAMES);
  const int64_t rows = x.size(0), real_vocab = vocab == -1 ? weight.size(0) : vocab;
  const at::TensorOptions real = x.options().dtype(accumulator_type(x.scalar_type()));
  const at::Tensor targets = target.contiguous();
  const int64_t count = counted_rows(targets, ignore_index, real_vocab);
  const at::Tensor real_weight = weight.narrow(0, 0, real_vocab).to(x.scalar_type());
  const at::Tensor loss = at::empty({}, real), row_losses = at::empty({rows}, real);
  const at::Tensor predictions = at::empty({rows}, target.options());
  const at::Tensor dx = need_grad ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  at::Tensor dweight = at::empty({0}, real);
  if (need_grad) {
    dweight = at::empty(weight.sizes(), real);
    dweight.narrow(0, rows == 0 ? 0 : real_vocab, rows == 0 ? weight.size(0) : weight.size(0) - real_vocab).zero_();
  }
  const int64_t block = block_rows(rows, real_vocab * static_cast<int64_t>(x.element_size()));
  const at::Tensor buffer = at::empty({block, real_vocab}, x.options());
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t size = std::min(block, rows - first);
    at::Tensor logits = buffer.narrow(0, 0, size);
    const at::Tensor x_block = x.narrow(0, first, size);
    logits_product(x_block, real_weight, logits);
    dispatch_floating(x.scalar_type(), [&]<typename T>() {
      using R = kernels::Accumulator<T>;
      kernels::SoftmaxRows<T> p;
      p.rows = size;
      p.vocab = real_vocab;
      p.logits = numbers<T>(logits);
      p.targets = targets.const_data_ptr<int64_t>() + first;
      p.ignore_index = ignore_index;
      p.write_gradient = need_grad;
      p.scale = R{1} / static_cast<R>(std::max<int64_t>(count, 1));
      p.losses = numbers<R>(row_losses) + first;
      p.predictions = predictions.mutable_data_ptr<int64_t>() + first;
      p.threads = at::get_num_threads();
      kernels::cpu::softmax_rows(p);
    });
    if (!need_grad) continue;
    at::Tensor dx_block = dx.narrow(0, first, size);
    at::mm_out(dx_block, logits, real_weight);
    add_weight_gradient(logits, x_block, first == 0, dweight.narrow(0, 0, real_vocab));
  }
  if (x.scalar_type() == at::kDouble)
    mean_loss<double>(row_losses, count, loss);
  else
    mean_loss<float>(row_losses, count, loss);
  return {loss, row_losses, predictions, dx, dweight};
}

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("_linear_cross_entropy_fwd", TORCH_FN(cpu_forward));
}

}  // namespace
}  // namespace adder::ops
