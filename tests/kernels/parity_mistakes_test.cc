#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/forwarding_backend.h"

// The parity table must be able to fail: each mistake here is one that a backend might make, small enough to hide in a
// loose tolerance.

namespace weir::kernels {
namespace {

// Leaves out the rounding of inputs: the weight is handed on as F32, whose layers take their input as it is.
class Widening : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

 protected:
  // The dequantised copy lives as long as this.
  HostMatrix Widened(const HostMatrix& weight) {
    std::vector<float>& copy = copies_.emplace_back();
    copy.reserve(static_cast<size_t>(weight.rows * weight.cols));
    for (int64_t r = 0; r < weight.rows; ++r) {
      for (int64_t c = 0; c < weight.cols; ++c) copy.push_back(Element(weight, r, c));
    }
    HostMatrix widened;
    widened.data = copy.data();
    widened.dtype = DType::kF32;
    widened.rows = weight.rows;
    widened.cols = widened.row_stride = weight.cols;
    return widened;
  }

 private:
  static float Element(const HostMatrix& weight, int64_t r, int64_t c) {
    const char* place = static_cast<const char*>(weight.data) + (r * weight.row_stride + c) * SizeOf(weight.dtype);
    const float value = DecodeAt(place, weight.dtype);
    if (weight.scales == nullptr) return value;
    const int64_t block = (weight.first_row + r) / 128 * weight.scales_stride + (weight.first_col + c) / 128;
    return value * DecodeAt(reinterpret_cast<const char*>(weight.scales) + block * 4, DType::kF32);
  }
  std::vector<std::vector<float>> copies_;
};

class UnroundedLinear final : public Widening {
 public:
  using Widening::Widening;
  absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) override {
    return inner_.PackLinear(Widened(weight), format);
  }
};

class UnroundedDown final : public Widening {
 public:
  using Widening::Widening;
  absl::StatusOr<std::unique_ptr<MlpWeight>> PackMlp(const HostMlp& weight, ScaleFormat format) override {
    return inner_.PackMlp({weight.gate, weight.up, Widened(weight.down)}, format);
  }
};

class OtherScaleFormat final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) override {
    return inner_.PackLinear(weight, format == ScaleFormat::kF32 ? ScaleFormat::kUe8m0 : ScaleFormat::kF32);
  }
};

class BlocksFromThePart final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) override {
    HostMatrix part = weight;  // the right scales at its first element, but blocks counted from there
    if (part.scales != nullptr) part.scales += part.first_row / 128 * part.scales_stride + part.first_col / 128;
    part.first_row = part.first_col = 0;
    return inner_.PackLinear(part, format);
  }
};

class OneTokenLess final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Upload(DeviceBatch& batch, const BatchLayout& layout) override {
    std::vector<SequenceRows> sequences(layout.sequences.begin(), layout.sequences.end());
    for (SequenceRows& sequence : sequences) sequence.first_position -= sequence.first_position > 0 ? 1 : 0;
    BatchLayout changed = layout;
    changed.sequences = sequences;
    inner_.Upload(batch, changed);
  }
};

class NextBlock final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Upload(DeviceBatch& batch, const BatchLayout& layout) override {
    std::vector<int32_t> tables(layout.block_tables.begin(), layout.block_tables.end());
    if (tables.size() > 1) std::swap(tables[0], tables[1]);
    BatchLayout changed = layout;
    changed.block_tables = tables;
    inner_.Upload(batch, changed);
  }
};

class LargerEpsilon final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) override {
    inner_.RmsNorm(out, x, weight, eps * 1.001f);
  }
};

class NoBias final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView,
             const RouterShape& shape) override {
    inner_.Route(expert_ids, expert_weights, logits, TensorView{}, shape);
  }
};

class WritesBesideItsColumns final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Add(TensorView a, TensorView b) override {
    inner_.Add(a, b);
    if (a.rows > 0 && a.row_stride > a.cols) inner_.Zero(a.Rows(0, 1).Columns(a.cols, 1));
  }
};

// How many of the cases of these kinds notice, and how many there are.
struct Noticed {
  int num_noticing = 0;
  int num_cases = 0;
};

Noticed CasesThatNotice(Backend& mistaken, std::string_view prefix) {
  const std::unique_ptr<Backend> reference = NewReferenceBackend();
  Noticed noticed;
  for (const ParityCase& one : AllCases()) {
    if (!std::string_view(one.name).starts_with(prefix)) continue;
    Rig right(*reference, DType::kF32, one.padding), wrong(mistaken, DType::kF32, one.padding);
    ++noticed.num_cases;
    const bool differs = !Difference(one.run(right), one.run(wrong), DType::kF32).empty();
    noticed.num_noticing += differs || !wrong.PaddingIsIntact() ? 1 : 0;
  }
  return noticed;
}

template <typename Mistake>
void ExpectNoticed(std::string_view prefix, double at_least) {
  const std::unique_ptr<Backend> reference = NewReferenceBackend();
  Mistake mistaken(*reference);
  const Noticed noticed = CasesThatNotice(mistaken, prefix);
  ASSERT_GT(noticed.num_cases, 0) << prefix;
  EXPECT_GE(noticed.num_noticing, at_least * noticed.num_cases)
      << prefix << ": " << noticed.num_noticing << " of " << noticed.num_cases << " cases notice";
}

TEST(ParityTable, NoticesThatInputsAreNotRounded) {
  for (const char* kind : {"Linear/bf16/", "Linear/f16/", "Linear/fp8/", "Linear/fp8_ue8m0/"}) {
    ExpectNoticed<UnroundedLinear>(kind, 0.8);
  }
  for (const char* kind : {"Mlp/bf16/", "Mlp/fp8/", "Mlp/fp8_ue8m0/"}) ExpectNoticed<UnroundedDown>(kind, 0.8);
}

TEST(ParityTable, NoticesTheOtherScaleFormat) {
  ExpectNoticed<OtherScaleFormat>("Linear/fp8/", 0.8);
  ExpectNoticed<OtherScaleFormat>("Linear/fp8_ue8m0/", 0.8);
}

TEST(ParityTable, NoticesBlocksCountedFromThePartInsteadOfTheTensor) {
  ExpectNoticed<BlocksFromThePart>("Linear/fp8/4x270x140/plain/from_", 0.8);
  ExpectNoticed<BlocksFromThePart>("Linear/fp8_ue8m0/4x270x140/plain/from_", 0.8);
}

TEST(ParityTable, NoticesAContextThatIsWrongByOneTokenOrOneBlock) {
  ExpectNoticed<OneTokenLess>("Attention/f32/f32_cache/", 0.6);
  ExpectNoticed<OneTokenLess>("Attention/bf16/bf16_cache/", 0.6);
  ExpectNoticed<NextBlock>("Attention/f32/f32_cache/", 0.6);
  ExpectNoticed<NextBlock>("Attention/bf16/bf16_cache/", 0.6);
}

TEST(ParityTable, NoticesAnEpsilonThatIsWrongByAThousandth) {
  ExpectNoticed<LargerEpsilon>("RmsNorm/10x40/large_eps", 1);
}

TEST(ParityTable, NoticesARouterWithoutItsBias) {
  ExpectNoticed<NoBias>("Route/v3/plain", 0.7);  // one case has no rows
  ExpectNoticed<NoBias>("Route/v3_odd/plain", 0.6);
}

TEST(ParityTable, NoticesWritesBesideTheColumns) { ExpectNoticed<WritesBesideItsColumns>("Add/10x24", 1); }

TEST(ParityTable, AgreesWithItself) {
  const std::unique_ptr<Backend> reference = NewReferenceBackend();
  ForwardingBackend same(*reference);
  EXPECT_EQ(CasesThatNotice(same, "Linear/").num_noticing, 0);
  EXPECT_EQ(CasesThatNotice(same, "RmsNorm/").num_noticing, 0);
}

}  // namespace
}  // namespace weir::kernels
