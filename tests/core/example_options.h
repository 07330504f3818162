#pragma once

#include <limits>
#include <string>
#include <vector>

#include "adder/core/options.h"

namespace adder::core {

enum class Schedule { kConstant, kCosine, kLinear };

struct ScheduleOptions {
  Schedule kind = Schedule::kCosine;
  int64_t warmup_steps = 0;

  void visit(FieldVisitor& v) {
    v.choice_of("kind", kind, "shape of the schedule", {"constant", "cosine", "linear"});
    v.field("warmup_steps", warmup_steps, "steps of linear warm-up", {.min = 0, .max = 1000});
  }
  bool operator==(const ScheduleOptions&) const = default;
};

struct TrainOptions {
  ScheduleOptions schedule;
  double lr = 1e-3;
  double decay = 0.1;
  double clip = std::numeric_limits<double>::infinity();
  double offset = 0;
  bool amp = false;

  // A table before the plain fields: TOML text must bring these first all the same.
  void visit(FieldVisitor& v) {
    v.group("schedule", schedule, "learning rate over time");
    v.field("lr", lr, "learning rate", {.min = 0, .open_min = true});
    v.field("decay", decay, "weight decay", {.min = 0, .max = 1, .open_max = true});
    v.field("clip", clip, "largest gradient norm", {.min = 0, .max = std::numeric_limits<double>::infinity()});
    v.field("offset", offset, "added to the loss");
    v.field("amp", amp, "mixed precision");
  }
  bool operator==(const TrainOptions&) const = default;
};

struct DataOptions {
  std::vector<std::string> files;
  std::string split = "train|test";

  void visit(FieldVisitor& v) {
    v.field("files", files, "text files");
    v.field("split", split, "names of the parts, cut at |");
  }
  bool operator==(const DataOptions&) const = default;
};

struct ExampleOptions {
  int64_t seed = 1;
  std::string name = "run";
  std::string device = "cpu";
  TrainOptions train;
  DataOptions data;

  void visit(FieldVisitor& v) {
    v.field("seed", seed, "random seed");
    v.field("name", name, "name of the run");
    v.choice("device", device, "where it runs", {"cpu", "cuda"});
    v.group("train", train, "how the model is trained");
    v.group("data", data, "what it is trained on");
  }
  bool operator==(const ExampleOptions&) const = default;
};

}  // namespace adder::core
