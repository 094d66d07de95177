#include "tests/kernels/backends.h"

#include <algorithm>
#include <cctype>

#include "kernels/check.h"

namespace weir::kernels {

const std::vector<BackendUnderTest>& Backends() {
  static const std::vector<BackendUnderTest>* backends = new std::vector<BackendUnderTest>{
      {"reference", [] { return NewReferenceBackend(); }, ""},
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
