#pragma once

#include <cairo.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>

#include "adder/core/check.h"

namespace adder::cli {

// The pixels of a PNG file, as 0xRRGGBB.
class Picture {
 public:
  explicit Picture(const std::filesystem::path& path)
      : surface_(cairo_image_surface_create_from_png(path.c_str()), cairo_surface_destroy) {
    const cairo_status_t status = cairo_surface_status(surface_.get());
    ADDER_CHECK(status == CAIRO_STATUS_SUCCESS, "{}: {}", path.string(), cairo_status_to_string(status));
  }

  int64_t width() const { return cairo_image_surface_get_width(surface_.get()); }
  int64_t height() const { return cairo_image_surface_get_height(surface_.get()); }
  uint32_t at(int64_t x, int64_t y) const {
    const unsigned char* row =
        cairo_image_surface_get_data(surface_.get()) + y * cairo_image_surface_get_stride(surface_.get());
    return reinterpret_cast<const uint32_t*>(row)[x] & 0xFFFFFF;
  }

  // The columns in which a pixel has exactly this colour.
  std::set<int64_t> columns(uint32_t color) const {
    std::set<int64_t> found;
    for (int64_t y = 0; y < height(); ++y)
      for (int64_t x = 0; x < width(); ++x)
        if (at(x, y) == color) found.insert(x);
    return found;
  }

 private:
  std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)> surface_;
};

// The first colours of the lines.
inline constexpr uint32_t kBlue = 0x0072B2, kOrange = 0xD55E00, kGreen = 0x009E73, kPink = 0xCC79A7;

}  // namespace adder::cli
