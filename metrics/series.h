#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cstdint>

// Short words for defining series; which there are is said by the process whose subject they are.

namespace weir::metrics {

inline prometheus::Family<prometheus::Gauge>& NewGauge(prometheus::Registry& registry, const char* name,
                                                       const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
inline prometheus::Family<prometheus::Counter>& NewCounter(prometheus::Registry& registry, const char* name,
                                                           const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
inline prometheus::Family<prometheus::Histogram>& NewHistogram(prometheus::Registry& registry, const char* name,
                                                               const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

inline double Seconds(int64_t us) { return static_cast<double>(us) / 1e6; }

// A counter that follows a number which only grows.
inline void Follow(prometheus::Counter& counter, int64_t value) {
  const double more = static_cast<double>(value) - counter.Value();
  if (more > 0) counter.Increment(more);
}

}  // namespace weir::metrics
