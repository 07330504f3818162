// Padded, packed and empty sequences through the whole model.
#include "adder/models/mamba_lm.h"
#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using models::LMState;
using models::MambaLM;
using models::MambaLMOptions;
using nn::SequenceInfo;
using torch::Tensor;

constexpr int64_t kVocab = 21, kLength = 12, kIgnored = -100;

struct Case {
  std::string name;
  MambaLMOptions options;
};

std::vector<Case> cases() {
  MambaLMOptions base;
  base.d_model = 16;
  base.vocab_size = kVocab;
  base.mixer.d_state = 4;
  std::vector<Case> rows{{"base", base}};
  const auto row = [&](const std::string& name, auto change) {
    MambaLMOptions options = base;
    change(options, options.mixer);
    rows.push_back({name, options});
  };
  row("width1", [](auto&, auto& m) { m.d_conv = 1; });
  row("wide_window", [](auto&, auto& m) { m.d_conv = 7; });
  row("complex_zoh", [](auto&, auto& m) {
    m.complex = true;
    m.A_init = "s4d-lin";
    m.discretization = "zoh";
  });
  row("nothing_selective", [](auto&, auto& m) {
    m.dt_rank = "none";
    m.selective_B = m.selective_C = false;
  });
  row("biases_norms_untied", [](auto& o, auto& m) {
    o.norm = "layer";
    o.tie_embeddings = false;
    m.bias = true;
    m.inner_norm = "rms";
  });
  return rows;
}

class Sequences : public testing::TestWithParam<Case> {
 protected:
  MambaLM model(torch::ScalarType type) const {
    torch::manual_seed(1);
    MambaLM model(GetParam().options);
    model->to(type);
    model->set_activation_type(type);
    return model;
  }

  LMState random_state(int64_t sequences, torch::ScalarType type) const {
    const MambaLMOptions& o = GetParam().options;
    const int64_t channels = o.mixer.expand * o.d_model;
    const auto number = o.mixer.complex ? c10::toComplexType(type) : type;
    LMState state;
    for (int64_t i = 0; i < o.n_layer; ++i)
      state.layers.push_back({torch::randn({sequences, o.mixer.d_conv - 1, channels}, type).requires_grad_(),
                              torch::randn({sequences, channels, o.mixer.d_state}, number).requires_grad_()});
    return state;
  }
};
INSTANTIATE_TEST_SUITE_P(Cases, Sequences, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

NamedTensors named(const LMState& state, const std::string& prefix) {
  NamedTensors tensors;
  for (size_t i = 0; i < state.layers.size(); ++i) {
    tensors.emplace_back(prefix + std::to_string(i) + ".conv", state.layers[i].conv);
    tensors.emplace_back(prefix + std::to_string(i) + ".ssm", state.layers[i].ssm);
  }
  return tensors;
}

// The model on one batch: logits (M, V) of the steps that have a target, and the sum of their losses.
struct Pass {
  Tensor logits, loss;
  LMState after;
};

Pass run(MambaLM& model, const Tensor& ids, const Tensor& targets, const LMState& before,
         const SequenceInfo& sequence) {
  const Tensor scored = targets != kIgnored;
  const auto loss = model->loss(ids, targets, before, sequence);
  const Tensor sum = loss.mean * scored.sum().item<double>();
  const torch::NoGradGuard no_grad;
  return {model->forward(ids, before, sequence).first.index({scored}), sum, loss.state};
}

// The same from one call for each row of one sequence.
Pass joined(const std::vector<Pass>& rows) {
  Pass all{torch::empty({0}), torch::zeros({}), {}};
  std::vector<Tensor> logits;
  for (const Pass& row : rows) {
    logits.push_back(row.logits);
    all.loss = all.loss + row.loss;
  }
  all.logits = torch::cat(logits);
  for (size_t i = 0; i < rows[0].after.layers.size(); ++i) {
    std::vector<Tensor> conv, ssm;
    for (const Pass& row : rows) {
      conv.push_back(row.after.layers[i].conv);
      ssm.push_back(row.after.layers[i].ssm);
    }
    all.after.layers.push_back({torch::cat(conv), torch::cat(ssm)});
  }
  return all;
}

LMState row_of(const LMState& state, int64_t row) {
  LMState one;
  for (const nn::MambaState& layer : state.layers)
    one.layers.push_back({layer.conv.narrow(0, row, 1), layer.ssm.narrow(0, row, 1)});
  return one;
}

struct Outcome {
  NamedTensors values, gradients;
};

// Logits and states, and the gradients of the summed loss (and of the states, each number weighted at random) for all
// parameters and the states before.
Outcome outcome(MambaLM& model, const LMState& before, const Pass& pass) {
  Outcome out{{{"logits", pass.logits}}, {}};
  torch::manual_seed(2);
  Tensor objective = pass.loss;
  for (const auto& [name, tensor] : named(pass.after, "after.")) {
    out.values.emplace_back(name, tensor);
    const Tensor real = tensor.is_complex() ? torch::view_as_real(tensor) : tensor;
    objective = objective + (real * torch::randn(real.sizes(), real.options())).sum();
  }
  NamedTensors leaves = named(before, "before.");
  for (const auto& p : model->named_parameters()) leaves.emplace_back(p.key(), p.value());
  std::vector<Tensor> inputs;
  for (const auto& [name, tensor] : leaves) inputs.push_back(tensor);
  const auto gradients = torch::autograd::grad({objective}, inputs);
  for (size_t i = 0; i < leaves.size(); ++i) out.gradients.emplace_back("d" + leaves[i].first, gradients[i]);
  return out;
}

void expect_same(const Outcome& got, const Outcome& expected, torch::ScalarType type) {
  const bool wide = type == torch::kDouble;
  const auto compare = [](const NamedTensors& a, const NamedTensors& b, Tolerance tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(a[i].first, b[i].first);
      EXPECT_TRUE(b[i].second.numel() == 0 || b[i].second.abs().max().item<double>() > 0) << b[i].first;
      expect_near(a[i].first, as_real(a[i].second), as_real(b[i].second), tolerance);
    }
  };
  // Products of other row counts sum in another order, layer upon layer.
  compare(got.values, expected.values, wide ? kFloat64Backward : kFloat32Backward);
  compare(got.gradients, expected.gradients, wide ? kFloat64Backward : kFloat32Backward);
}

constexpr torch::ScalarType kTypes[] = {torch::kDouble, torch::kFloat};

// Padding on the left, on the right and on both sides, with any tokens in it, against each row alone.
TEST_P(Sequences, MaskedPaddingLeavesNoTrace) {
  const std::vector<std::pair<int64_t, int64_t>> kept = {{0, 12}, {5, 12}, {0, 4}, {3, 8}, {11, 12}, {0, 1}, {6, 6}};
  const auto rows = static_cast<int64_t>(kept.size());
  for (const torch::ScalarType type : kTypes)
    for (const bool reverse : {false, true}) {
      SCOPED_TRACE(testing::Message() << type << (reverse ? " reverse" : ""));
      MambaLM lm = model(type);
      const Tensor mask = torch::zeros({rows, kLength}, torch::kBool);
      for (int64_t b = 0; b < rows; ++b) mask[b].slice(0, kept[b].first, kept[b].second).fill_(true);
      const Tensor ids = torch::randint(kVocab, {rows, kLength}, torch::kLong);
      const Tensor targets =
          torch::randint(kVocab, {rows, kLength}, torch::kLong).masked_fill(mask.logical_not(), kIgnored);
      const LMState before = random_state(rows, type);
      const SequenceInfo padding{.mask = mask, .reverse = reverse};
      const Outcome padded = outcome(lm, before, run(lm, ids, targets, before, padding));

      const Tensor others =
          torch::where(mask, ids, (ids + 1 + torch::randint(kVocab - 1, ids.sizes(), torch::kLong)) % kVocab);
      const Outcome again = outcome(lm, before, run(lm, others, targets, before, padding));
      for (const auto& [a, b] : {std::pair(&padded.values, &again.values), {&padded.gradients, &again.gradients}})
        for (size_t i = 0; i < a->size(); ++i)
          EXPECT_TRUE(torch::equal((*a)[i].second, (*b)[i].second)) << (*a)[i].first << " knows of the padding";

      std::vector<Pass> alone;
      for (int64_t b = 0; b < rows; ++b) {
        const auto part = [&](const Tensor& t) { return t.narrow(0, b, 1).slice(1, kept[b].first, kept[b].second); };
        alone.push_back(run(lm, part(ids), part(targets), row_of(before, b), {.reverse = reverse}));
      }
      expect_same(padded, outcome(lm, before, joined(alone)), type);
    }
}

TEST_P(Sequences, PackedEqualsSeparate) {
  const std::vector<int64_t> cuts = {0, 0, 1, 4, 4, 11, 12, 12};
  const auto sequences = static_cast<int64_t>(cuts.size()) - 1;
  for (const torch::ScalarType type : kTypes)
    for (const bool reverse : {false, true})
      for (const bool masked : {false, true}) {
        SCOPED_TRACE(testing::Message() << type << (reverse ? " reverse" : "") << (masked ? " masked" : ""));
        MambaLM lm = model(type);
        const Tensor ids = torch::randint(kVocab, {1, kLength}, torch::kLong);
        const Tensor mask = masked ? torch::rand({1, kLength}) < 0.7 : torch::ones({1, kLength}, torch::kBool);
        const Tensor targets =
            torch::randint(kVocab, {1, kLength}, torch::kLong).masked_fill(mask.logical_not(), kIgnored);
        const LMState before = random_state(sequences, type);
        const auto info = [&](const Tensor& its_mask) {
          SequenceInfo sequence{.reverse = reverse};
          if (masked) sequence.mask = its_mask;
          return sequence;
        };
        SequenceInfo packing = info(mask);
        packing.cu_seqlens = torch::tensor(cuts, torch::kLong);
        const Outcome packed = outcome(lm, before, run(lm, ids, targets, before, packing));
        std::vector<Pass> alone;
        for (int64_t s = 0; s < sequences; ++s) {
          const auto part = [&](const Tensor& t) { return t.slice(1, cuts[s], cuts[s + 1]); };
          alone.push_back(run(lm, part(ids), part(targets), row_of(before, s), info(part(mask))));
        }
        expect_same(packed, outcome(lm, before, joined(alone)), type);
      }
}

TEST_P(Sequences, ReverseIsTheFlippedSequence) {
  for (const torch::ScalarType type : kTypes) {
    MambaLM lm = model(type);
    const Tensor ids = torch::randint(kVocab, {2, kLength}, torch::kLong);
    const Tensor targets = torch::randint(kVocab, {2, kLength}, torch::kLong);
    const LMState before = random_state(2, type);
    Pass flipped = run(lm, ids.flip(1), targets.flip(1), before, {});
    flipped.logits = flipped.logits.reshape({2, kLength, kVocab}).flip(1).reshape({-1, kVocab});
    const Outcome expected = outcome(lm, before, flipped);
    expect_same(outcome(lm, before, run(lm, ids, targets, before, {.reverse = true})), expected, type);
  }
}

TEST_P(Sequences, NoStepsLeaveTheStateAsItIs) {
  struct Shape {
    int64_t rows, length;
    std::vector<int64_t> cuts;
  };
  for (const Shape& shape : {Shape{2, 0, {}}, {0, 0, {}}, {0, 3, {}}, {1, 0, {0, 0, 0}}, {1, 0, {0}}})
    for (const bool reverse : {false, true})
      for (const bool masked : {false, true}) {
        SCOPED_TRACE(testing::Message() << shape.rows << " rows, " << shape.cuts.size() << " cuts" << reverse
                                        << masked);
        MambaLM lm = model(torch::kFloat);
        const bool packed = !shape.cuts.empty();
        const LMState before =
            random_state(packed ? static_cast<int64_t>(shape.cuts.size()) - 1 : shape.rows, torch::kFloat);
        SequenceInfo sequence{.reverse = reverse};
        if (masked) sequence.mask = torch::ones({shape.rows, shape.length}, torch::kBool);
        if (packed) sequence.cu_seqlens = torch::tensor(shape.cuts, torch::kLong);
        const Tensor ids = torch::zeros({shape.rows, shape.length}, torch::kLong);
        const NamedTensors expected = named(before, "");
        for (const bool gradients : {false, true}) {
          const torch::AutoGradMode mode(gradients);
          const auto [logits, after] = lm->forward(ids, before, sequence);
          EXPECT_EQ(logits.sizes(), torch::IntArrayRef({shape.rows, shape.length, kVocab}));
          EXPECT_EQ(lm->loss(ids, ids, before, sequence).mean.item<float>(), 0);
          const NamedTensors got = named(after, ""), fresh = named(lm->forward(ids, {}, sequence).second, "");
          for (size_t i = 0; i < expected.size(); ++i) {
            const auto& [name, state] = expected[i];
            EXPECT_TRUE(same_bits(got[i].second.detach(), state.detach())) << name;
            EXPECT_TRUE(same_bits(fresh[i].second.detach(), torch::zeros_like(state))) << name;
            if (state.numel() == 0) continue;
            EXPECT_FALSE(got[i].second.is_alias_of(state)) << name;
            if (!gradients) continue;
            const Tensor weight = torch::randn_like(state);
            EXPECT_TRUE(torch::equal(torch::autograd::grad({got[i].second}, {state}, {weight}, true)[0], weight))
                << name;
          }
        }
      }
}

}  // namespace
}  // namespace adder::tests
