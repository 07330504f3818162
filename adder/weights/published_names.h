#pragma once

// The files of a published folder.
namespace adder::weights {

inline constexpr const char* kPublishedConfig = "config.json";
inline constexpr const char* kPublishedSafetensors = "model.safetensors";
inline constexpr const char* kPublishedTorch = "pytorch_model.bin";
inline constexpr const char* kPublishedIndexSuffix = ".index.json";  // behind the name of what is in parts

}  // namespace adder::weights
