#include "adder/tasks/task.h"

#include "adder/core/check.h"

namespace adder::tasks {

SequenceSource::SequenceSource(int64_t batch, int64_t length, uint64_t seed, int64_t count)
    : batch_(batch), length_(length), seed_(seed), count_(count) {}

std::optional<TaskBatch> SequenceSource::next() {
  const int64_t rows = count_ < 0 ? batch_ : std::min(batch_, count_ - next_);
  if (rows <= 0) return std::nullopt;
  TaskBatch batch;
  batch.input = torch::empty({rows, length_}, torch::kLong);
  batch.target = torch::full({rows, length_}, kIgnored, torch::kLong);
  for (int64_t row = 0; row < rows; ++row)
    make(seed_, static_cast<uint64_t>(next_ + row), batch.input.data_ptr<int64_t>() + row * length_,
         batch.target.data_ptr<int64_t>() + row * length_);
  next_ += rows;
  batch.after = {{"sequence", next_}};
  return batch;
}

void SequenceSource::seek(const nlohmann::json& position) {
  const auto found = position.find("sequence");
  ADDER_CHECK(found != position.end() && found->is_number_integer() && found->get<int64_t>() >= 0,
              "data position must hold a whole number \"sequence\", got {}", position.dump());
  next_ = found->get<int64_t>();
}

}  // namespace adder::tasks
