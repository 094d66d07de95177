#include "tests/kernels/backends.h"

#include <algorithm>
#include <cctype>

#include "kernels/check.h"

namespace weir::kernels {

namespace {

// Null when this processor lacks the instruction set.
std::unique_ptr<Backend> Cpu(const char* isa, int32_t num_threads) {
  CpuOptions options;
  options.isa = isa;
  options.num_threads = num_threads;
  absl::StatusOr<std::unique_ptr<Backend>> backend = NewCpuBackend(options);
  return backend.ok() ? *std::move(backend) : nullptr;
}

}  // namespace

const std::vector<BackendUnderTest>& Backends() {
  static const std::vector<BackendUnderTest>* backends = new std::vector<BackendUnderTest>{
      {"reference", [] { return NewReferenceBackend(); }, ""},
      {"cpu:portable", [] { return Cpu("portable", 2); }, "", AttentionRounding::kOutputLatents},
      {"cpu:avx2", [] { return Cpu("avx2", 2); }, "", AttentionRounding::kOutputLatents},
      {"cpu:avx512", [] { return Cpu("avx512", 2); }, "", AttentionRounding::kOutputLatents},
      {"cpu:avx512-bf16", [] { return Cpu("avx512-bf16", 2); }, "", AttentionRounding::kAllFactors},
      {"cpu:avx2, 1 thread", [] { return Cpu("avx2", 1); }, "cpu:avx2", AttentionRounding::kOutputLatents},
      {"cpu:avx512-bf16, 3 threads", [] { return Cpu("avx512-bf16", 3); }, "cpu:avx512-bf16",
       AttentionRounding::kAllFactors},
  };
  return *backends;
}

const BackendUnderTest& BackendNamed(const std::string& name) {
  for (const BackendUnderTest& backend : Backends()) {
    if (backend.name == name) return backend;
  }
  WEIR_CHECK(false, "no backend is called " + name);
}

std::string TestName(std::string name) {
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

}  // namespace weir::kernels
