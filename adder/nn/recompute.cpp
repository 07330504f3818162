#include "adder/nn/recompute.h"

#include <torch/torch.h>

#include "adder/core/check.h"

namespace adder::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Body = std::function<variable_list(const variable_list&)>;

struct BodyHolder : torch::CustomClassHolder {
  explicit BodyHolder(Body b) : body(std::move(b)) {}
  Body body;
};

// The tensors: inputs, then parameters; none undefined.
struct Recomputed : torch::autograd::Function<Recomputed> {
  // A TensorList, whose elements are arguments of the graph each; those of a vector are not.
  static variable_list forward(AutogradContext* context, const Body& body, int64_t inputs, at::TensorList tensors) {
    context->save_for_backward(tensors.vec());
    context->saved_data["body"] = c10::IValue::make_capsule(c10::make_intrusive<BodyHolder>(body));
    context->saved_data["inputs"] = inputs;
    context->set_materialize_grads(false);
    return body({tensors.begin(), tensors.begin() + inputs});
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    ADDER_CHECK(!torch::GradMode::is_enabled(), "recomputation has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto holder = c10::static_intrusive_pointer_cast<BodyHolder>(context->saved_data["body"].toCapsule());
    const auto count = static_cast<size_t>(context->saved_data["inputs"].toInt());
    variable_list inputs, wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < saved.size(); ++i) {
      const bool wants = saved[i].requires_grad();
      torch::Tensor tensor = saved[i];
      if (i < count) {
        tensor = tensor.detach().requires_grad_(wants);
        inputs.push_back(tensor);
      }
      if (!wants) continue;
      wanted.push_back(tensor);
      places.push_back(i);
    }
    variable_list result(2 + saved.size());
    variable_list outputs, of_outputs;
    {
      const torch::AutoGradMode grad(true);
      const variable_list all = holder->body(inputs);
      for (size_t i = 0; i < all.size(); ++i) {
        if (!grads[i].defined() || !all[i].requires_grad()) continue;
        outputs.push_back(all[i]);
        of_outputs.push_back(grads[i]);
      }
    }
    if (outputs.empty() || wanted.empty()) return result;
    const variable_list found = torch::autograd::grad(outputs, wanted, of_outputs, /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) result[2 + places[i]] = found[i];
    return result;
  }
};

}  // namespace

Recompute parse_recompute(const std::string& name) {
  if (name == "none") return Recompute::kNone;
  if (name == "mixer") return Recompute::kMixer;
  if (name == "block") return Recompute::kBlock;
  fail("recompute must be none, mixer or block, got \"{}\"", name);
}

variable_list recomputed(const Body& body, const variable_list& inputs, const variable_list& parameters) {
  if (!torch::GradMode::is_enabled()) return body(inputs);
  variable_list tensors;
  std::vector<bool> present;
  for (const torch::Tensor& input : inputs) {
    present.push_back(input.defined());
    if (input.defined()) tensors.push_back(input);
  }
  const auto count = static_cast<int64_t>(tensors.size());
  const Body of_present = [body, present](const variable_list& given) {
    variable_list all(present.size());
    for (size_t i = 0, next = 0; i < present.size(); ++i)
      if (present[i]) all[i] = given[next++];
    return body(all);
  };
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  return Recomputed::apply(of_present, count, at::TensorList(tensors));
}

}  // namespace adder::nn
